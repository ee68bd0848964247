"""Kernels of our own for CPUs; `csrc/` is their C."""
