"""Whatever reads a run: progress, exports, SQL, pages. Never writes to the database."""
