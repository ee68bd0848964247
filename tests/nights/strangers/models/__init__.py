"""Model folders and adapters of every kind, damaged at random."""
