"""Figures, words and imports of the code itself, for the tests of its layout."""
