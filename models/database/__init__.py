"""Access to the database that producers and workers share: connections, bulk inserts, the outbox, counts."""
