"""Access to the shared database: connections, its clock, bulk inserts, the outbox, counts of runs."""
