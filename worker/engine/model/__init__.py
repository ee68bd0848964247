"""Rows in, logits out. Knows no requests."""
