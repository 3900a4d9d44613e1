"""What a run writes to be watched, next to Megatron's tags: figures by source, histograms, tokens, warnings."""
