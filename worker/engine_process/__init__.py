"""The engine in a process of its own: its supervisor, the messages between the two, its loop."""
