"""The tables and values that producer and worker share: database models, not neural networks."""
