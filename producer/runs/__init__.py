"""The commands that change a run: write, send, decode here, cancel, retry, prune. The only writer."""
