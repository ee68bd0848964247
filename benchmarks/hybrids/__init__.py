"""Decode steps of a hybrid beside their bound."""
