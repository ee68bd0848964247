"""A file becomes validated job drafts. Knows no database."""
