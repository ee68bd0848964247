"""Tables, not neural networks: the schema, messages, settings and start of processes that producer and worker share."""
