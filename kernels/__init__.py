"""Kernels, each beside its plain-torch truth."""
