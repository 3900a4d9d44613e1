"""The true training program on fake CUDA tensors: memory, kernels, bytes and time of a step, without a GPU."""
