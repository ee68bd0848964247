"""Kernels and bytes of a GPU's decode steps, counted without a GPU."""
