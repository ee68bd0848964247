"""Measurements of the engine and the whole system; `storage/` measures databases, `peers/` drives other engines."""
