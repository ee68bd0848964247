"""What only a GPU has."""
