"""The GPU side: a Celery worker that claims jobs, and the engine process that decodes them.

`celery -A worker` finds its app in `worker.celery`. The package itself imports nothing, so that
`worker.engine` can be used without Celery.
"""
