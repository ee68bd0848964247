"""Helpers of the tests: processes, servers, table rows, models, kernels, and figures of the code itself."""
