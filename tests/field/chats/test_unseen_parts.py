"""Parts of a chat that no template prints, or that can be read in two ways, are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from producer.errors import LineProblem
from tests.field.chats.test_older_interfaces import draft_of

USER = {"role": "user", "content": "Hi"}
TEXT = {"type": "text", "text": "Hi"}


def answering(**fields: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "content": None, **fields}, USER]


def calling(function: Any) -> list[dict[str, Any]]:
    return answering(tool_calls=[{"type": "function", "function": function}])


CHATS: list[tuple[list[dict[str, Any]], str]] = [
    ([{**USER, "images": ["a.png"]}], "[0].images is not seen by the model: chats are text only"),
    ([USER, {**USER, "attachments": [{"url": "x"}]}], "[1].attachments is not seen by the model"),
    ([{"role": "user", "content": [{"text": "Hi", "image": "a.png"}]}], "[0].content[0].image is not seen"),
    ([{"role": "user", "content": [{**TEXT, "image_url": {"url": "x"}}]}], "[0].content[0].image_url is not seen"),
    (answering(function_call="auto"), '[1].function_call must be an object with name and arguments, got "auto"'),
    (answering(function_call={"arguments": "{}"}), "[1].function_call.name must be a string, got null"),
    (calling({"name": "f", "arguments": '{"a": 1, "a": 2}'}), "arguments has a twice, with different values"),
]


@pytest.mark.parametrize(("messages", "problem"), CHATS, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("column", ["messages", "dialogue"])
def test_what_no_template_prints_is_named(
    messages: list[dict[str, Any]], problem: str, column: str, tmp_path: Path
) -> None:
    """Under the name of the column that the command names."""
    options: dict[str, Any] = {} if column == "messages" else {"messages_column": column}
    with pytest.raises(LineProblem) as refused:
        draft_of(tmp_path, {column: messages}, None, **options)
    assert f"{column}{problem[:3]}" in str(refused.value) or not problem.startswith("[")
    assert problem in str(refused.value)


TOOLS: list[tuple[dict[str, Any], str]] = [
    ({"type": "function"}, "tools[0].name must be a string, got null; write {"),
    ({"type": "function", "function": None}, "tools[0].function must be an object with a name, got null"),
    ({"type": "function", "function": {"name": ""}}, "tools[0].function.name must be a string"),
    ({"function": {"name": 5}}, "tools[0].function.name must be a string, got 5"),
    ({"name": "f", "input_schema": {}}, "tools[0].input_schema is called parameters in a chat"),
]


@pytest.mark.parametrize(("tool", "problem"), TOOLS, ids=lambda value: str(value)[:50])
def test_a_tool_without_a_name_is_named(tool: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """The sentinel that shows whether a template prints tools has a name of its own."""
    with pytest.raises(LineProblem) as refused:
        draft_of(tmp_path, {"messages": [USER], "tools": [tool]})
    assert problem in str(refused.value)


@pytest.mark.parametrize("message", [{**USER, "images": []}, {**USER, "audio": None}, {"role": "user", "content": [
    {**TEXT, "image_url": None}]}])  # fmt: skip
def test_empty_parts_of_a_data_set_ask_for_nothing(message: dict[str, Any], tmp_path: Path) -> None:
    draft = draft_of(tmp_path, {"messages": [message]})
    assert draft.messages == [message]


@pytest.mark.parametrize("option", ["prompt_column", "messages_column"])
def test_a_problem_has_the_name_that_the_file_has(option: str, tmp_path: Path) -> None:
    for value in (5, {"a": "x"}, [1], "\ud800"):
        with pytest.raises(LineProblem) as refused:
            draft_of(tmp_path, {"dialogue": value}, None, **{option: "dialogue"})
        assert refused.value.field.startswith("dialogue")
