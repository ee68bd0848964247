"""Single layers of models, at full width, beside the bare products that they consist of."""
