"""Layer specs: how a model family is put together from Megatron's modules and a few of our own."""
