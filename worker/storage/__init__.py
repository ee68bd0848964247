"""Every SQL write of a worker, each one transaction, and what is done while the database is away."""
