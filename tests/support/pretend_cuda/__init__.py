"""A CUDA machine played by the CPU: real values, and errors where a real one would fail or wait."""
