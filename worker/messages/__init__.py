"""What arrives from Redis: read strictly into chunks and control commands, or kept as a dead letter."""
