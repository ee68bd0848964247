"""Batched decoding: model, KV cache, continuous batching. Knows nothing of Celery, Redis or SQL."""
