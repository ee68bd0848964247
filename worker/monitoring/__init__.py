"""A worker seen from outside: its counts, their Prometheus endpoint, its log as JSON."""
