"""Duplicate custom ids, found without keeping every id."""

from __future__ import annotations

from producer.prompts.duplicate_ids import DuplicateFinder, FirstUses


def test_duplicates_are_found_among_many_ids() -> None:
    ids = DuplicateFinder()
    for number in range(20_000):
        ids.add(f"job-{number}")
    assert ids.duplicate_hashes() == frozenset()
    ids.add("job-77")
    first_uses = FirstUses(ids.duplicate_hashes())
    assert first_uses.first_line("job-76", "1") is None
    assert first_uses.first_line("job-77", "78") is None
    assert first_uses.first_line("job-77", "90") == "78"
    assert DuplicateFinder().duplicate_hashes() == frozenset()
