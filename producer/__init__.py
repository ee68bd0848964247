"""The command line: validates prompts, submits runs, shows and exports what came of them. Never loads torch."""
