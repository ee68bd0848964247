"""Tables, not neural networks: the schema, messages and settings that producer and worker share."""
