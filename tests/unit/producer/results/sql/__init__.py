"""Tests of `producer sql`."""
