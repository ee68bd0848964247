"""Connections that hang, servers that fail over, and the processes that must go on or end."""
