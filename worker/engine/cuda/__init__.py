"""The parts that only a GPU has: paged attention, a layer's other kernels, and graphs of decode steps."""
