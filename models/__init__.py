"""The words that producer and worker share: parameters, messages, tables, states and settings.

Imports nothing of ours. The package itself imports nothing at all, so that the engine can use
`models.params` on a machine that has no database driver.
"""
