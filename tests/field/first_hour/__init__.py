"""The first hour of a newcomer: the README, interrupted and detached runs."""
