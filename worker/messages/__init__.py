"""Messages from Redis: read strictly into chunks and control commands, or kept as dead letters."""
