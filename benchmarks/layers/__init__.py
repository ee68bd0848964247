"""Single layers of models, at full width, beside the bare matmuls that they consist of."""
