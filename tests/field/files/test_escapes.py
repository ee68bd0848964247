"""Texts are taken as they stand everywhere, and a backslash-n that may be a mistake is told of once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.params import MAX_STOP_STRINGS
from producer.options import DecodingOptions
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.openai_lines import CHAT_URL
from producer.prompts.records import ReaderOptions
from tests.conftest import TOY_MODEL, Producer


def read(
    folder: Path, content: str, name: str, *, stop: list[str] | None = None, **options: Any
) -> tuple[list[JobDraft], list[str]]:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    submission = Submission(path, "m", DecodingOptions(stop=stop).grid(), reader=ReaderOptions(**options))
    warnings: dict[str, str] = {}
    lines = list(read_lines(submission, frozenset(), warnings))
    for line in lines:
        if line.problem is not None:
            raise line.problem
    return [draft for line in lines for draft in line.drafts], list(warnings.values())


@pytest.mark.parametrize(
    ("content", "name", "options", "prompt", "warned"),
    [
        ("prompt\nLine one\\nLine two\n", "a.csv", {}, "Line one\\nLine two", "prompt"),
        ("prompt\nends\\n\n", "a.tsv", {}, "ends\\n", "prompt"),
        ("Q: why?\\nA:\n", "a.txt", {}, "Q: why?\\nA:", "prompt"),
        ('prompt\n"a real\nbreak, \\nabla and \\n 1"\n', "a.csv", {}, "a real\nbreak, \\nabla and \\n 1", None),
        ("prompt\nthe gradient \\nabla f of \\theta\n", "a.csv", {}, "the gradient \\nabla f of \\theta", None),
        ("prompt\nC:\\news\\reports\n", "a.csv", {}, "C:\\news\\reports", None),
        ('{"prompt": "print(\\"a\\\\nB\\")"}', "a.jsonl", {}, 'print("a\\nB")', None),  # code in JSON is meant
        ("text\nhi\n", "a.csv", {"template": "Q: {text}\\nA:"}, "Q: hi\\nA:", "--template"),
        ("text\nhi\n", "a.csv", {"template": "Q: {text}\nA:"}, "Q: hi\nA:", None),
        ("text\nhi\n", "a.csv", {"template": 'Q: {{ text }}{{ "\\n" }}A:'}, "Q: hi\nA:", None),  # Jinja's own string
        ("prompt\nhi\n", "a.csv", {"stop": ["\\n"]}, "hi", "--stop"),
        ("prompt\nhi\n", "a.csv", {"stop": ["\\n\\nUser:", "x"]}, "hi", "--stop"),
        ("prompt\nhi\n", "a.csv", {"stop": ["\n", "\\"]}, "hi", None),
        ("prompt;stop\nhi;\\nUser\n", "a.csv", {}, "hi", "stop"),
        ('{"prompt": "hi", "stop": ["\\\\n"]}', "a.jsonl", {}, "hi", "stop"),
        ('{"prompt": "hi", "stop": ["\\n"]}', "a.jsonl", {}, "hi", None),
    ],
)
def test_one_rule(
    tmp_path: Path, content: str, name: str, options: dict[str, Any], prompt: str, warned: str | None
) -> None:
    (draft,), warnings = read(tmp_path, content, name, **options)
    assert draft.prompt == prompt
    if warned is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert f"{warned} has \\" in warning and "taken as it stands" in warning


def test_a_warning_comes_once_and_says_where(tmp_path: Path) -> None:
    rows = "".join(f"row {number}\\nNext\n" for number in range(50))
    drafts, (warning,) = read(tmp_path, f"prompt\n{rows}", "a.csv")
    assert len(drafts) == 50 and warning.startswith(f"{tmp_path / 'a.csv'}:2: prompt has \\n")


def test_the_command_warns_and_stops_at_a_real_line_break(producer: Producer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time\n", encoding="utf-8")
    at = ("run", "a.txt", "--model", TOY_MODEL, "--dry-run")
    assert "warning: --stop has \\n, a backslash and a letter" in producer(*at, "--stop", "\\n").stderr
    assert "warning" not in producer(*at, "--stop", "\n").stderr


@pytest.mark.parametrize(
    ("content", "name", "prompts", "is_warned"),
    [
        ('prompt\n"say ""hi"" now"\n', "a.tsv", ['"say ""hi"" now"'], True),  # as pandas writes a TSV
        ('id, prompt\n1, "Hello"\n', "a.csv", [' "Hello"'], True),
        ('prompt\n"two\nlines"\n', "a.tsv", ['"two', 'lines"'], True),
        ('"two\nlines"\n', "a.txt", ['"two', 'lines"'], False),
        ('"say ""hi"""\n', "a.txt", ['"say ""hi"""'], True),
        ('prompt\n"say ""hi"" now"\n', "a.csv", ['say "hi" now'], False),
        ('prompt\n"Hello," he said. "And you?"\n"Yes."\n""\n" "" "\n', "a.tsv",
         ['"Hello," he said. "And you?"', '"Yes."', '""', '" "" "'], True),
        ('prompt\n"Hello," he said. "And you?"\n"Yes."\n""\n"\nsay "" twice\n', "a.tsv",
         ['"Hello," he said. "And you?"', '"Yes."', '""', '"', 'say "" twice'], True),
        ('prompt\n"Hello," he said. "And you?"\n"Yes."\n""\nsay "" twice\n', "a.tsv",
         ['"Hello," he said. "And you?"', '"Yes."', '""', 'say "" twice'], False),
    ],
)  # fmt: skip
def test_quotes_that_csv_would_take_away_are_told_of(
    tmp_path: Path, content: str, name: str, prompts: list[str], is_warned: bool
) -> None:
    options: dict[str, Any] = {"prompt_column": " prompt"} if ", prompt" in content else {}
    drafts, warnings = read(tmp_path, content, name, **options)
    assert [draft.prompt for draft in drafts] == prompts
    assert ["has quotes that are a part of it" in warning for warning in warnings] == [True] * is_warned


@pytest.mark.parametrize(
    ("template", "prompt", "warning"),
    [
        ("Q: {text}", "Q: hi", None),
        ("{text} {{ topic }}", "{text} cats", "--template prints {text} as it stands; write {{ text }}, or all of it"),
        ("{text}{% if topic %}!{% endif %}", "{text}!", "--template prints {text} as it stands"),
        ("{ text } {topic}", "{ text } cats", "--template prints {text} as it stands"),
        ("{text:.2f} {topic!r} {topic}", "{text:.2f} {topic!r} cats", "--template prints {text} as it stands"),
        ("{ text }", "{ text }", "--template prints {text} as it stands"),
        ("${text}", "$hi", None),
        ("{{ row['text'] }}", "hi", None),
        ('{"a": "{{ text }}"} \\frac{a}{b} {other}', '{"a": "hi"} \\frac{a}{b} {other}', None),
        ("constant", "constant", "--template names no column: every line has the same prompt"),
        ("{%raw%}{text}{%endraw%}", "{text}", "--template prints {text} as it stands"),
    ],
)
def test_a_name_that_a_template_does_not_fill_in_is_told_of(
    tmp_path: Path, template: str, prompt: str, warning: str | None
) -> None:
    for content, name in (("text,topic\nhi,cats\n", "a.csv"), ('{"text": "hi", "topic": "cats"}', "a.jsonl")):
        (draft,), warnings = read(tmp_path, content, name, template=template)
        assert draft.prompt == prompt
        assert len(warnings) == (warning is not None)
        assert all(str(warning) in each for each in warnings)


@pytest.mark.parametrize("count", [17, 64, MAX_STOP_STRINGS])
def test_more_stop_strings_than_sixteen(tmp_path: Path, count: int) -> None:
    stop = [f"stop {number}" for number in range(count)]
    (native,), _ = read(tmp_path, json.dumps({"prompt": "x", "stop": stop}), "a.jsonl")
    body = {"messages": [{"role": "user", "content": "Hi"}], "stop": stop}
    (asked,), _ = read(tmp_path, json.dumps({"custom_id": "a", "url": CHAT_URL, "body": body}), "b.jsonl")
    (given,), _ = read(tmp_path, "prompt\nx\n", "c.csv", stop=stop)
    assert native.params.stop == asked.params.stop == given.params.stop == tuple(stop)


def test_too_many_stop_strings_are_refused_with_the_limit(tmp_path: Path) -> None:
    stop = [str(number) for number in range(MAX_STOP_STRINGS + 1)]
    with pytest.raises(Exception, match=f"stop must be a string or up to {MAX_STOP_STRINGS} strings"):
        read(tmp_path, json.dumps({"prompt": "x", "stop": stop}), "a.jsonl")


LOOKS = "looks like a JSON object, and is taken as text; --input-format jsonl"
HEADER = "looks like the header of a table, and is taken as text; --input-format csv or tsv"


@pytest.mark.parametrize(
    ("name", "content", "options", "prompt", "warning"),
    [
        ("a.txt", b'{"prompt": "x"}\n', {}, '{"prompt": "x"}', LOOKS),
        ("a.txt", b'{"a": "x"}\n', {}, '{"a": "x"}', None),
        ("a.txt", "prompt\ttopic\n".encode("utf-16"), {"encoding": "utf-16"}, "prompt\ttopic", HEADER),
        ("a.txt", b'"id","prompt"\n', {}, '"id","prompt"', HEADER),
        ("a.txt", b"a prompt, or two\n", {}, "a prompt, or two", None),
        ("a.csv", b"prompt\nprompt\n", {}, "prompt", "is the name of its column: files that are put together repeat"),
        ("a.tsv", b"q\nq\n", {"prompt_column": "q"}, "q", "is the name of its column"),
        ("a.csv", b"prompt,topic\nprompt,a\n", {}, "prompt", None),
        ("a.txt", "naïve\n".encode(), {"encoding": "latin-1"}, "naÃ¯ve", "is UTF-8 too ('naïve'), and is read as"),
        ("a.csv", "prompt\nnaïve\n".encode("latin-1"), {"encoding": "latin-1"}, "naïve", None),
        ("a.txt", "“q”\n".encode("cp1252"), {"encoding": "latin-1"}, "\x93q\x94", "U+0093; give --encoding cp1252"),
        ("a.txt", "“q”\n".encode("cp1252"), {"encoding": "cp1252"}, "“q”", None),
        ("a.txt", "日本\n".encode("iso2022_jp"), {}, "\x1b$BF|K\\\x1b(B", "U+001B; name the file's encoding"),
        ("a.txt", b"\x1a\n", {}, "\x1a", "has the control character U+001A"),  # the end of a file to DOS
        ("a.jsonl", b'{"prompt": "\\u001b[1m"}\n', {}, "\x1b[1m", None),
        ("a.txt", "a\tb\u0085c\u2028d\n".encode(), {}, "a\tb\u0085c\u2028d", None),
    ],
)
def test_a_text_of_another_format_or_encoding_is_told_of(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], prompt: str, warning: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    submission = Submission(tmp_path / name, "m", DecodingOptions().grid(), reader=ReaderOptions(**options))
    warnings: dict[str, str] = {}
    (line,) = read_lines(submission, frozenset(), warnings)
    assert [draft.prompt for draft in line.drafts] == [prompt]
    assert (warning is None) == (not warnings) and str(warning or "") in "".join(warnings.values())
