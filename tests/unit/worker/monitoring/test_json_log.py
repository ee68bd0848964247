"""A record of the log as JSON: one line, whatever it says, with the ids of its jobs."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import copy_context
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.monitoring.json_log import MAX_IDS, JsonFormatter, about, note_task


@dataclass
class Job:
    job_id: int
    run_id: str


def line_of(message: str, *arguments: Any, error: bool = False, **extra: Any) -> dict[str, Any]:
    """The parsed line of a record."""
    logger = logging.getLogger("worker.test")
    information = sys.exc_info() if error else None
    record = logger.makeRecord(logger.name, logging.WARNING, "", 1, message, arguments, information, extra=extra)
    text = JsonFormatter("gpu-7").format(record)
    assert "\n" not in text and "\r" not in text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


@given(st.text())
def test_a_record_is_one_line_whatever_it_says(message: str) -> None:
    line = line_of("%s", message)
    assert line["message"] == message
    assert (line["level"], line["logger"], line["worker"]) == ("warning", "worker.test", "gpu-7")
    assert datetime.fromisoformat(line["time"]).tzinfo is not None and line["time"].endswith("Z")


def test_a_record_names_its_jobs() -> None:
    assert line_of("x", **about([Job(7, "r")])).items() >= {"run_id": "r", "job_id": 7}.items()
    several = line_of("x", **about([Job(9, "b"), Job(3, "a"), Job(5, "b")]))
    assert (several["run_ids"], several["job_ids"]) == (["a", "b"], [3, 5, 9])
    assert len(line_of("x", **about(Job(each, "r") for each in range(10_000)))["job_ids"]) == MAX_IDS
    assert "run_id" not in line_of("x")


def test_the_records_of_a_task_name_its_run() -> None:
    def task() -> str:
        note_task("run-1")
        return str(line_of("x")["run_id"])

    assert copy_context().run(task) == "run-1"
    assert "run_id" not in line_of("x")


def test_an_exception_is_in_its_record() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        line = line_of("x", error=True)
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ValueError: first\nsecond")
