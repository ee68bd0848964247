"""The parts that only a GPU has: paged attention and graphs of decode steps."""
