"""Hugging Face checkpoints into Megatron and back: one small file per model family, and the reading and writing."""
