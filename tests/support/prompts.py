"""Prompt files read as far as the prompt of each line, for the tests of what a line may be."""

from __future__ import annotations

from pathlib import Path

from producer.errors import LineProblem
from producer.prompts.lines import PromptLine, prompt_line
from producer.prompts.records import ReaderOptions, read_records


def read_prompts(path: Path, options: ReaderOptions = ReaderOptions()) -> list[tuple[int, PromptLine | LineProblem]]:
    """The number of every line that is not blank, with its prompt or with what is wrong with it."""
    found: list[tuple[int, PromptLine | LineProblem]] = []
    for record in read_records(path, options):
        try:
            found.append((record.number, prompt_line(record)))
        except LineProblem as problem:
            found.append((record.number, problem))
    return found
