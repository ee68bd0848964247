"""Nights that hang or end wrongly: mute connections, failover, poolers, closed terminals."""
