"""The arguments of tool calls, as text and as values."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.chat import Messages
from models.tool_calls import render_tool_calls, template_messages

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def call_of(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


@given(st.dictionaries(st.text(), VALUES))
def test_arguments_that_are_json_text_become_what_the_text_says(arguments: dict[str, Any]) -> None:
    assert template_messages(call_of(json.dumps(arguments))) == call_of(arguments)
    assert template_messages(call_of(arguments)) == call_of(arguments)


@pytest.mark.parametrize("text", ["7", "null", '"text"', "[1]", "{not json", "[" * 100_000])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert template_messages(call_of(text)) == call_of(text)


@pytest.mark.parametrize(
    ("message", "decoded"),
    [
        ({"tool_calls": [{"name": "f", "arguments": "{}"}]}, {"tool_calls": [{"name": "f", "arguments": {}}]}),
        ({"tool_calls": [{"function": {"arguments": ""}}]}, {"tool_calls": [{"function": {"arguments": {}}}]}),
        ({"function_call": {"arguments": '{"a": 1}'}}, {"function_call": {"arguments": {"a": 1}}}),
        ({"tool_calls": None, "function_call": None}, {"tool_calls": None, "function_call": None}),
        ({"tool_calls": [3, {"function": 3}, None]}, {"tool_calls": [3, {"function": 3}, None]}),
        ({"tool_calls": "{}", "arguments": "{}"}, {"tool_calls": "{}", "arguments": "{}"}),
    ],
)
def test_each_form_of_a_call(message: dict[str, Any], decoded: dict[str, Any]) -> None:
    assert template_messages([message]) == [decoded]


@given(st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "function_call"]), VALUES)))
def test_any_conversation_is_taken_and_left_unchanged(messages: list[dict[str, Any]]) -> None:
    before = json.dumps(messages)
    assert len(template_messages(messages)) == len(messages)
    assert json.dumps(messages) == before


def arguments_of(messages: Messages) -> Any:
    return messages[1]["tool_calls"][0]["function"]["arguments"]


def test_a_template_that_joins_arguments_as_text_gets_the_text() -> None:
    text = '{"city":  "Bonn"}'
    assert render_tool_calls(lambda messages: "args: " + arguments_of(messages), call_of(text)) == "args: " + text
    assert render_tool_calls(lambda messages: str(arguments_of(messages)["city"]), call_of(text)) == "Bonn"


def test_the_error_of_the_decoded_form_is_the_one_that_is_told() -> None:
    def refuse(messages: Messages) -> str:
        raise ValueError(type(arguments_of(messages)).__name__)

    given_arguments: list[Any] = ["{}", {}]
    for arguments in given_arguments:
        with pytest.raises(ValueError, match="dict"):
            render_tool_calls(refuse, call_of(arguments))
