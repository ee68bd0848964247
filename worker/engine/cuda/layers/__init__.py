"""A model's layers on a GPU: which of our kernels and modules take the place of torch's operations."""
