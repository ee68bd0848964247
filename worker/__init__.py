"""The Celery worker: claims chunks, feeds the engine, acknowledges what is committed.

`celery -A worker` finds its app in `worker.celery`. The package itself imports nothing, so that
`worker.engine` can be used without Celery.
"""
