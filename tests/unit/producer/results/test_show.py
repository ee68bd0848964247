"""The colors of `show`: each token by its probability; and the prompt of a chat."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import Engine, update

from models.schema.job import Job
from models.settings import read_settings
from producer.results.show import color_of, show_job
from tests.support.table_rows import RUN_ID, insert_run

#: A conversation with parts of a content, and with a message that only calls a tool.
CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "the weather"}, {"type": "text", "text": " in Rome?"}]},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}]},
    {"role": "tool", "content": "sunny"},
]


def test_colors_go_with_probability() -> None:
    assert [color_of(logprob) for logprob in (0.0, -0.5, -1.0, -3.0, -9.0, -1e9)] == [
        "green", "cyan", "yellow", "magenta", "red", "red"
    ]  # fmt: skip


def test_numbers_of_other_programs_have_a_color_or_none() -> None:
    assert [color_of(logprob) for logprob in (math.nan, 1e3, -math.inf)] == ["", "green", "red"]


def test_a_chat_is_shown_by_its_texts(sqlite_database: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    insert_run(sqlite_database, 1)
    with sqlite_database.begin() as connection:
        connection.execute(update(Job).values(prompt=None, messages=CHAT))
    settings = read_settings(database=sqlite_database.url.render_as_string())
    show_job(settings, RUN_ID, "job-0", with_alternatives=False, as_json=False)
    assert "user: the weather in Rome?\nassistant: \ntool: sunny\n" in capsys.readouterr().out
