"""A continuous-batching engine: requests in, finished requests out. Knows no Celery, SQL or pipe."""
