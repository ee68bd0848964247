"""The path on which each model decodes: verdicts that were found on this machine, and the table that is shipped."""
