"""The tokens of answers: as a page holds them, and counted."""
