"""Measurements of a GPU in five parts of at most five minutes each: `python -m benchmarks.gpu PART`."""
