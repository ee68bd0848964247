"""The command line: each command reads its options and calls one function of a wing."""
