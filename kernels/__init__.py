"""Kernels, each next to its plain-torch truth."""
