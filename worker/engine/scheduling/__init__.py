"""Decides who runs, who waits, who has ended, and whose KV block is whose. Knows no tensors."""
