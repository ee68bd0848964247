"""Conversations as people send them, on their way to the model."""
