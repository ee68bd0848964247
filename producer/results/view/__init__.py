"""`producer view`: runs, prompts, answers and SQL as pages of a server on this machine. Never writes."""
