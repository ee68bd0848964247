"""Measurements of writing, sending, storing and reading, without a model or with a toy one."""
