"""The sampler of a GPU: its parameters, tokens and statistics stay on the device from step to step."""
