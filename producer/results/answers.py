"""Answers on the screen as they end, for `producer run --prompt`. Changes nothing."""

from __future__ import annotations

import sys

from sqlalchemy import Engine

from producer.render import visible
from producer.results.queries import new_answers, run_progress


class AnswerPrinter:
    """Prints a run's answers on stdout, each once: a text alone, several under the names of their jobs."""

    def __init__(self, database: Engine, run_id: str) -> None:
        self._database = database
        self._run_id = run_id
        self._last_id = 0
        self._is_alone = run_progress(database, run_id).num_jobs == 1

    def print_new(self) -> None:
        """Prints what has ended since the last call."""
        answers = new_answers(self._database, self._run_id, self._last_id)
        for answer in answers:
            if not self._is_alone or len(answers) > 1:
                number = f" [{answer.sample_index}]" if answer.sample_index else ""
                sys.stdout.write(f"── {visible(answer.custom_id)}{number}\n")
            text = visible(answer.text) if sys.stdout.isatty() else answer.text
            sys.stdout.write(f"{text}\n")
            self._last_id = answer.id
        if answers:
            sys.stdout.flush()
