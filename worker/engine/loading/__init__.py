"""A model's files become a model in memory, and a small twin of it says whether our steps compute what it does."""
