"""The workload, the pictures and a worker without a model, which the benchmarks share."""
