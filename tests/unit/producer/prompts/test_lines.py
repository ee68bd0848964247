"""Reading prompt files: what a line may be, and what is said about one that may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from producer.errors import LineProblem, UsageError
from producer.prompts.lines import PromptLine
from producer.prompts.records import MAX_LINE_BYTES
from tests.support.prompts import read_prompts


def read_numbered(path: Path, *lines: str | bytes) -> list[tuple[int, PromptLine | LineProblem]]:
    file = path / "prompts.jsonl"
    file.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return read_prompts(file)


def read(path: Path, *lines: str | bytes) -> list[PromptLine | LineProblem]:
    return [line for _, line in read_numbered(path, *lines)]


def only(read_lines: list[PromptLine | LineProblem]) -> PromptLine:
    (line,) = read_lines
    assert isinstance(line, PromptLine), line
    return line


def test_a_line_is_split_into_prompt_parameters_and_metadata(tmp_path: Path) -> None:
    record = {"custom_id": "a", "prompt": "x", "temperature": 0.5, "priority": 9, "topic": {"deep": [1]}}
    line = only(read(tmp_path, json.dumps(record)))
    assert (line.custom_id, line.prompt, line.priority) == ("a", "x", 9)
    assert line.params == {"temperature": 0.5}
    assert line.metadata == {"topic": {"deep": [1]}}


def test_lines_without_an_id_are_named_by_their_number_and_blank_ones_do_not_count(tmp_path: Path) -> None:
    lines = read(tmp_path, "", '{"prompt": "x"}', "  ", '{"prompt": "y"}')
    assert [line.custom_id for line in lines if isinstance(line, PromptLine)] == ["line-2", "line-4"]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    line = only(read(tmp_path, b'\xef\xbb\xbf{"prompt": "x"}\r'))
    assert line.prompt == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: Expecting property name enclosed in double quotes at column 2; one object per line"),
        ("[1]", "must be a JSON object, got [1]"),
        ("{}", "needs either prompt or messages"),
        (
            '{"prompt": "x", "messages": []}',
            "needs either prompt or messages, not both; name one with --prompt-column or --messages-column",
        ),
        ('{"prompt": 3}', "prompt must be a string, got 3"),
        ('{"prompt": ""}', "prompt is empty; give at least one character"),
        ('{"prompt": "x", "custom_id": 5.5}', "custom_id must be a string, got 5.5"),
        ('{"prompt": "x", "priority": 10}', "priority must be a whole number from 0 to 9 (9 goes first), got 10"),
        ('{"messages": []}', "messages must be a list of at least one message, got []"),
        ('{"messages": ["x"]}', 'messages[0] must be an object with role and content, got "x"'),
        (
            '{"messages": [{"role": "robot", "content": "x"}]}',
            'messages[0].role must be one of system, user, assistant, tool, developer, got "robot"',
        ),
        (
            '{"messages": [{"role": "user", "content": null}]}',
            "messages[0].content must be a string, got null",
        ),
        ('{"prompt": "\\ud800"}', "prompt has a lone surrogate (\\ud800 … \\udfff); write the character whole"),
        (
            '{"prompt": "a\\u0000"}',
            "prompt has a NUL character (\\u0000), which PostgreSQL cannot store; remove it, or give --replace-nul",
        ),
        ("[" * 100_000, "is nested too deeply"),
        (b'{"prompt": "\xff"}', "is not UTF-8 (byte 13); save the file as UTF-8, or name its encoding with --encoding"),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(tmp_path: Path, text: str | bytes, message: str) -> None:
    good = '{"prompt": "x"}'
    lines = read_numbered(tmp_path, good, text, good)
    assert [type(line) for _, line in lines] == [PromptLine, LineProblem, PromptLine]
    number, problem = lines[1]
    assert str(problem) == message
    assert number == 2


def test_an_escaped_backslash_before_u0000_is_no_nul(tmp_path: Path) -> None:
    assert only(read(tmp_path, r'{"prompt": "\\u0000"}')).prompt == "\\u0000"


def test_a_line_that_is_too_long_is_one_error_and_reading_goes_on(tmp_path: Path) -> None:
    long_line = json.dumps({"prompt": "x" * (2 * MAX_LINE_BYTES)})
    (first, problem), (second, line) = read_numbered(tmp_path, long_line, '{"prompt": "x"}')
    assert [first, second] == [1, 2]
    assert "longer than 16 MiB" in str(problem)
    assert isinstance(line, PromptLine)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")
