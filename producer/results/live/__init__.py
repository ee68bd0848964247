"""Watching runs and workers: a moment as the database has it, and frames of it for a terminal of any width."""
