"""The tables of the database, a file for each. Knows no queries."""
