"""The tables of the database, a file each. No queries."""
