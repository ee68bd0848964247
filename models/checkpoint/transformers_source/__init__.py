"""The installed Transformers as its source tells: importing it would load torch."""
