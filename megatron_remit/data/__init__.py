"""The corpus: JSONL text to Megatron's .bin/.idx, and its rows as batches on each rank."""
