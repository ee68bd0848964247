"""Every SQL write of a worker, each one transaction; what is done while the database is away."""
