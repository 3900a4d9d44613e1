"""Triton kernels, each with the plain-torch truth that it is tested against."""
