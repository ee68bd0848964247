"""Watching runs and workers: what the database says of a moment, and frames of it for a terminal of any width."""
