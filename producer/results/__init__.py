"""The commands that read a run: progress, exports, SQL, pages. Never writes to the database."""
