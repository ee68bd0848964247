"""One script for each other engine, run in that engine's own environment by `benchmarks.against_peers`."""
