"""People who send files, statements, templates and URLs that are meant to do harm."""
