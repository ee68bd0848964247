"""A model's small files, read before anything is written: configs, tokenizer, chat templates. Knows no database."""
