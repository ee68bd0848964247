"""Logits in, tokens and their trace out."""
