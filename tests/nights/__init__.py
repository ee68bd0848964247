"""Nights and strangers: faults that starve the product, and people who attack it."""
