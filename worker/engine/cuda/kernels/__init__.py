"""Kernels of a layer beside attention, each a launch function with a Torch reference of the same signature."""
