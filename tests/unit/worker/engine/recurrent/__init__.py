"""Recurrent layers' kernels and their references."""
