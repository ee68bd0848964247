"""Files in and files out: tables, JSON, other tools' fields, results in every format."""
