"""`producer sql`: statements of strangers, which read and can do nothing else."""
