"""Other engines, each in an environment of its own: see `benchmarks.against_peers`."""
