"""Sources of chats: lines, tables and data sets as people have them, and what the command makes of them."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils import json as kombu_json
from pyarrow import parquet
from sqlalchemy import Engine

from models.chat import ChatInputs, keyed_messages
from models.database.outbox import send_outbox
from models.message import ChunkMessage, JobMessage
from producer.errors import LineProblem, UsageError
from producer.options import InputOptions
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.readers.record import MAX_NESTING
from producer.prompts.validation import check
from producer.runs.writer import write
from worker.celery import chunk_body
from worker.engine_process.protocol import Submit
from worker.messages.chunk import differences, read_chunk
from worker.storage.job_store import JobStore

HELLO = [{"role": "user", "content": "Hello"}]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]
SHAREGPT = [{"from": "system", "value": "Be brief"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def submission_of(path: Path, **options: Any) -> Submission:
    given = InputOptions(**options)
    return Submission(path, "toy", Grid({}), seed=1, reader=given.reader_options(), chat=given.chat_options())


def drafts_of(path: Path, warnings: dict[str, str] | None = None, **options: Any) -> list[JobDraft]:
    """The jobs of a file; a problem of a line is raised."""
    drafts = []
    for line in read_lines(submission_of(path, **options), frozenset(), {} if warnings is None else warnings):
        if line.problem is not None:
            raise line.problem
        drafts += line.drafts
    return drafts


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of the kind that its name says; a table's cells of lists are JSON text in a CSV."""
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".csv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
            table.writerows(cells)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


FORMATS = pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])


@FORMATS
def test_a_messages_column_is_enough(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, [{"id": "x", "messages": TURNS}])
    (draft,) = drafts_of(path)
    assert (draft.messages, draft.prompt, draft.metadata) == (TURNS, None, {"id": "x"})


@pytest.mark.parametrize("text", [json.dumps(HELLO), json.dumps(HELLO, indent=1), repr(HELLO), f" {HELLO!r}\n"])
@FORMATS
def test_messages_may_be_text(name: str, text: str, tmp_path: Path) -> None:
    (draft,) = drafts_of(written(tmp_path, name, [{"messages": text}]))
    assert draft.messages == HELLO


#: A row as UltraChat has it.
ULTRACHAT = {"prompt": "The first message", "uid": "7", "messages": TURNS}


@FORMATS
@pytest.mark.parametrize(
    ("options", "prompt", "messages", "kept"),
    [
        ({"prompt_column": "prompt"}, "The first message", None, "messages"),
        ({"prompt_column": "uid"}, "7", None, "messages"),
        ({"messages_column": "messages"}, None, TURNS, "prompt"),
        ({"template": "Say {uid}"}, "Say 7", None, "messages"),
    ],
)
def test_a_named_column_wins_over_what_else_a_row_has(
    name: str, options: dict[str, Any], prompt: str | None, messages: Any, kept: str, tmp_path: Path
) -> None:
    warnings: dict[str, str] = {}
    (draft,) = drafts_of(written(tmp_path, name, [ULTRACHAT]), warnings, **options)
    assert (draft.prompt, draft.messages) == (prompt, messages)
    assert kept in draft.metadata and not warnings


@FORMATS
def test_a_row_with_both_and_no_option_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LineProblem, match="either prompt or messages, not both; name one with --prompt-column or"):
        drafts_of(written(tmp_path, name, [ULTRACHAT]))


@FORMATS
def test_sharegpt(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, [{"id": "1", "conversations": SHAREGPT[:2]}])
    (draft,) = drafts_of(path, messages_column="conversations")
    assert draft.messages == [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]


def test_sharegpt_of_tools(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
        {"from": "observation", "value": "a hedgehog"},
    ]
    (draft,) = drafts_of(written(tmp_path, "a.jsonl", [{"conversations": turns}]), messages_column="conversations")
    assert draft.messages is not None
    assert draft.messages[1]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    assert [message["role"] for message in draft.messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_prompt_that_is_a_list_of_messages_is_a_chat(name: str, tmp_path: Path) -> None:
    """TRL's conversational data sets."""
    row = {"prompt": HELLO, "chosen": [{"role": "assistant", "content": "Hi"}]}
    named: list[dict[str, Any]] = [{}, {"prompt_column": "prompt"}]
    for options in named:
        (draft,) = drafts_of(written(tmp_path, name, [row]), **options)
        assert (draft.messages, draft.metadata) == (HELLO, {"chosen": row["chosen"]})


@FORMATS
def test_prompts_become_chats(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, [{"text": "Hello", "prompt": "other"}])
    system = {"role": "system", "content": "Be brief"}
    cases: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
        ({"chat": True}, HELLO),
        ({"system": "Be brief"}, [system, *HELLO]),
        ({"chat": True, "system": "Be brief"}, [system, *HELLO]),
    ]
    for options, messages in cases:
        (draft,) = drafts_of(path, prompt_column="text", **options)
        assert (draft.prompt, draft.messages, draft.metadata) == (None, messages, {"prompt": "other"})


def test_a_chats_own_system_message_wins(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Be long"}
    path = written(tmp_path, "a.jsonl", [{"messages": [own, *HELLO]}, {"messages": HELLO}])
    first, second = drafts_of(path, system="Be brief", chat=True)
    assert first.messages == [own, *HELLO]
    assert second.messages == [{"role": "system", "content": "Be brief"}, *HELLO]


@FORMATS
def test_tools_documents_and_template_arguments_go_with_a_chat(name: str, tmp_path: Path) -> None:
    row = {"messages": HELLO, "tools": [TOOL], "documents": [{"text": "x"}], "chat_template_kwargs": {"a": True}}
    cells = row if name == "a.jsonl" else {key: json.dumps(value) for key, value in row.items()}
    (draft,) = drafts_of(written(tmp_path, name, [cells]), chat_arg=["a=0", "b=null", "c=text", 'd={"e": 1}'])
    kwargs = {"a": True, "b": None, "c": "text", "d": {"e": 1}}
    assert draft.chat == {"tools": [TOOL], "documents": [{"text": "x"}], "chat_template_kwargs": kwargs}
    assert draft.metadata == {}


def test_an_openai_line_brings_its_tools(tmp_path: Path) -> None:
    body = {"model": "m", "messages": HELLO, "tools": [TOOL], "tool_choice": "auto"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (draft,) = drafts_of(written(tmp_path, "a.jsonl", [line]))
    assert draft.chat == {"tools": [TOOL]}
    (draft,) = drafts_of(written(tmp_path, "a.jsonl", [{**line, "body": {**body, "tool_choice": "none"}}]))
    assert draft.chat is None


def test_tools_beside_a_plain_prompt_are_metadata_with_a_warning(tmp_path: Path) -> None:
    warnings: dict[str, str] = {}
    (draft,) = drafts_of(written(tmp_path, "a.jsonl", [{"prompt": "x", "documents": ["y"], "tools": []}]), warnings)
    assert (draft.metadata, draft.chat) == ({"documents": ["y"]}, None)
    assert list(warnings) == ["documents"]
    assert "documents is kept as metadata: the model sees it in chats only" in warnings["documents"]


def test_what_is_empty_does_not_enter_the_key(tmp_path: Path) -> None:
    plain, empty, other = drafts_of(
        written(
            tmp_path,
            "a.jsonl",
            [
                {"custom_id": "a", "messages": HELLO},
                {"custom_id": "b", "messages": HELLO, "tools": [], "documents": None, "chat_template_kwargs": {}},
                {"custom_id": "c", "messages": HELLO, "tools": [TOOL]},
            ],
        )
    )
    assert plain.content_key("m", 1) == empty.content_key("m", 1) != other.content_key("m", 1)
    assert ChatInputs(tools=[], documents=None).stored is None


def test_parts_have_the_key_of_their_joined_text() -> None:
    """Version 0.1 joined the parts of OpenAI's lines."""
    parts = [{"type": "text", "text": "a"}, "b"]
    assert keyed_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}

#: Messages as clients of OpenAI's interface write them.
TAKEN: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [CALL], "refusal": None, "audio": None, "function_call": None},
    {"role": "assistant", "content": None, "function_call": CALL["function"]},
    {"role": "tool", "tool_call_id": "c1", "content": "a hedgehog", "name": "look"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}], "name": "Ann"},
    {"role": "developer", "content": "Be brief"},
    {"role": "assistant", "content": "x", "reasoning_content": "because"},
]


@pytest.mark.parametrize("message", TAKEN, ids=lambda message: message["role"])
def test_messages_are_taken_as_clients_write_them(message: dict[str, Any], tmp_path: Path) -> None:
    (draft,) = drafts_of(written(tmp_path, "a.jsonl", [{"messages": [*HELLO, message, *HELLO]}]))
    assert draft.messages == [*HELLO, message, *HELLO]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"messages": "not JSON"}, 'messages is text that is not JSON: "not JSON"'),
        ({"messages": '{"role": "user"}'}, "messages must be a list of at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role must be one of .*, got \"robot\""),
        ({"messages": [{"from": "narrator", "value": "x"}]}, r"messages\[0\].from must be one of .*, got \"narrator\""),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content must be a string, got 3"),
        ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\].content must be a string, got \[\]"),
        ({"messages": [{"role": "user", "name": 3, "content": "x"}]}, r"messages\[0\].name must be a string, got 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            r"messages\[0\].content\[0\] is of type \"image_url\", and a chat may only hold parts of type text",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}]},
            r"messages\[0\].tool_calls\[0\].function.name must be a string, got 3",
        ),
        ({"messages": HELLO, "tools": "look"}, 'tools is text that is not JSON: "look"'),
        ({"messages": HELLO, "tools": ["look"]}, "tools must be a list of objects"),
        ({"messages": HELLO, "documents": {"text": "x"}}, "documents must be a list of objects"),
        ({"messages": HELLO, "chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
        ({"messages": HELLO, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs has tokenize, which"),
    ],
)
def test_what_is_no_chat_is_named(line: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(LineProblem, match=problem):
        drafts_of(written(tmp_path, "a.jsonl", [line]))


def test_a_chat_that_the_assistant_ends_is_said_to_be_continued(tmp_path: Path) -> None:
    warnings: dict[str, str] = {}
    drafts_of(written(tmp_path, "a.jsonl", [{"messages": TURNS}, {"messages": TURNS[:2]}]), warnings)
    assert list(warnings.values()) == [
        f"{tmp_path / 'a.jsonl'}:2: messages end with the assistant, whose message the answer continues"
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"chat_arg": ["x"]}, "--chat-arg must be KEY=VALUE"),
        ({"chat_arg": ["messages=1"]}, "--chat-arg has messages, which the template gets from elsewhere"),
        ({"system": ""}, "--system is empty"),
        ({"chat_arg": ["x=1"]}, "--chat-arg is for chats, and the file has plain prompts"),
        ({"prompt_column": "a", "messages_column": "b"}, "either --prompt-column or --messages-column, not both"),
        ({"template": "a", "messages_column": "b"}, "either --template or --messages-column, not both"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        check(submission_of(written(tmp_path, "a.jsonl", [{"prompt": "x"}]), **options))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


JSON_FIELDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "messages": lambda value: {"messages": [{"role": "user", "content": "x", "extra": value}]},
    "topic": lambda value: {"prompt": "x", "topic": value},
    "tools": lambda value: {"messages": HELLO, "tools": [{"function": {"name": "f", "parameters": value}}]},
    "documents": lambda value: {"messages": HELLO, "documents": [{"text": value}]},
    "chat_template_kwargs": lambda value: {"messages": HELLO, "chat_template_kwargs": {"a": value}},
    "logit_bias": lambda value: {"prompt": "x", "logit_bias": value},
    "body": lambda value: {"url": "/v1/chat/completions", "body": {"messages": HELLO, "other": value}},
}


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 250, 800])
@pytest.mark.parametrize("field", JSON_FIELDS)
def test_what_is_nested_too_deeply_to_travel_is_refused(field: str, depth: int, tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", [JSON_FIELDS[field](nested(depth))])
    with pytest.raises(LineProblem, match=f"^{field} is nested more than {MAX_NESTING} levels deep"):
        drafts_of(path)


def test_what_is_nested_as_deeply_as_is_allowed_is_stored_and_travels(database: Engine, tmp_path: Path) -> None:
    above = {"messages": 2, "topic": 0, "tools": 3, "documents": 2, "chat_template_kwargs": 1}
    lines = [JSON_FIELDS[field](nested(MAX_NESTING - count)) for field, count in above.items()]
    submission = submission_of(written(tmp_path, "a.jsonl", lines))
    write(submission, check(submission), database)
    arrived: list[JobMessage] = []

    def send(chunk: ChunkMessage) -> None:
        written_body: str = kombu_json.dumps([[chunk_body(chunk)], {}, None])  # type: ignore[no-untyped-call]
        read = read_chunk(base64.b64encode(written_body.encode()).decode())
        claims = JobStore(database, "worker", 30.0).claim([job.id for job in read.jobs])
        assert list(differences(read, claims, chunk.model)) == []
        jobs = tuple(claim.job for claim in claims)
        arrived.extend(pickle.loads(pickle.dumps(Submit(jobs, 5))).jobs)  # as the engine's process gets it

    send_outbox(database, send)
    drafts = drafts_of(submission.path)
    assert [job.messages for job in arrived] == [draft.messages for draft in drafts]
    assert [job.chat and job.chat.stored for job in arrived] == [draft.chat for draft in drafts]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
KEYS = st.sampled_from(["role", "content", "from", "value", "tool_calls", "name", "function", "type", "text"])
MESSAGES = st.lists(st.dictionaries(KEYS, JSON | st.sampled_from(["user", "assistant", "gpt", "text"]), max_size=4))


@given(messages=JSON | MESSAGES, tools=JSON, kwargs=JSON)
def test_any_json_is_a_chat_or_refused(messages: Any, tools: Any, kwargs: Any, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": tools, "chat_template_kwargs": kwargs}) + "\n")
    try:
        (draft,) = drafts_of(path)
    except LineProblem as problem:
        assert problem.problem
        return
    assert draft.messages and json.loads(json.dumps(draft.chat)) == draft.chat
