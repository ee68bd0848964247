"""One sequence at a time through the model's own cache, for models whose rows cannot be packed into one batch."""
