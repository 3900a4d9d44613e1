"""Hugging Face checkpoints in and out of Megatron: one small file per model family, and the reading and writing."""
