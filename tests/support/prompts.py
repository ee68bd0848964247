"""Prompt files and submissions of them; and files read as far as the prompt of each line."""

from __future__ import annotations

import json
from pathlib import Path

from producer.errors import LineProblem
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
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


def prompt_file(folder: Path, *records: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def submission(path: Path, **grid: list[object]) -> Submission:
    return Submission(path, "toy", Grid(grid), seed=1)
