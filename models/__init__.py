"""Tables, not neural networks: what producer and worker share, schema, messages, settings, the start of a process."""
