"""A conversation's prompt, or its refusal, does not depend on the conversations before it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment

from models.chat import ChatInputs, Messages
from models.chat_rendering import ChatRefused, ChatRenderer

NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)

#: Templates whose success depends on more than roles: arguments, ids, names.
TEMPLATES = {
    "walks through arguments": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for t in m.tool_calls or [] %}"
        "{{ t.function.name }}{% for k, v in t.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}"
        "{% endfor %}"
    ),
    "has calls or a content": (  # Mistral's
        "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls is not none %}[CALLS]"
        "{% for t in m.tool_calls %}{% if t.id is not defined or t.id|length != 9 %}{{ raise('ids have 9 letters') }}"
        "{% endif %}{{ t.function.name }}{% endfor %}{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    ),
    "prints named tools alone": (
        "{% for m in messages %}{% if m.role != 'tool' or m.name %}{{ m.content or m.tool_calls[0].function.name }}"
        "{% endif %}{% endfor %}"
    ),
    "takes texts alone": (
        "{% for m in messages %}{% if m.content %}{{ m.content + '.' }}{% else %}"
        "{{ m.tool_calls[0].function.name + '.' }}{% endif %}{% endfor %}"
    ),
}


def call(arguments: Any = '{"a": 1}', id: str = "123456789") -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": id, "type": "function", "function": function}]}


USER, TOOL = {"role": "user", "content": "Hi"}, {"role": "tool", "content": "a hedgehog"}
ANSWER = {"role": "assistant", "content": "Yes"}
SECOND = st.sampled_from(
    [call(), call('["no", "object"]'), call("not JSON"), call({"a": 1}), call(id="c1"), ANSWER,
     {**ANSWER, "tool_calls": []}, {**ANSWER, "tool_calls": None}, {**call(), "content": "I look"}]
)  # fmt: skip
THIRD = st.sampled_from([TOOL, {**TOOL, "name": "look"}, {**TOOL, "name": None}, {**TOOL, "tool_call_id": "c1"}, USER])
CONVERSATIONS = st.tuples(st.just(USER), SECOND, THIRD).map(list)


def renderer(template: str) -> ChatRenderer:
    render = compiled(template)
    return ChatRenderer(lambda messages, *_: render(messages))


@cache
def compiled(template: str) -> Callable[[Messages], str]:
    def refuse(reason: str) -> None:
        raise ValueError(reason)

    source = Environment().from_string(TEMPLATES[template])
    return lambda messages: source.render(messages=list(messages), **{"raise": refuse})


def outcome(renderer: ChatRenderer, messages: Messages) -> str:
    try:
        return renderer.text(messages, ChatInputs(), NOON)
    except ChatRefused as refused:
        return f"refused: {refused}"


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60)
@given(conversations=st.lists(CONVERSATIONS, min_size=2, max_size=6))
def test_each_has_the_outcome_that_it_has_alone(template: str, conversations: list[Messages]) -> None:
    together = renderer(template)
    for messages in conversations:
        assert outcome(together, messages) == outcome(renderer(template), messages)


def test_a_chat_that_is_refused_leaves_one_of_the_same_roles_alone() -> None:
    together = renderer("walks through arguments")
    assert outcome(together, [USER, call('["no", "object"]'), TOOL]).startswith("refused: the chat template refuses it")
    assert outcome(together, [USER, call(), TOOL]) == "<user>Hi<assistant>looka=1;<tool>a hedgehog"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_at_the_end_are_not_dropped(name: str) -> None:
    asked = outcome(renderer("has calls or a content"), [USER, {**ANSWER, "content": "", name: ""}])
    assert asked == "<user>Hi"
    refused = outcome(renderer("has calls or a content"), [USER, {**ANSWER, "content": "", name: "because"}])
    assert refused == "refused: messages[1] (role assistant) ends the chat and has no text to continue"


def test_an_empty_list_of_tool_calls_is_none() -> None:
    """Servers write one beside every text."""
    together = renderer("has calls or a content")
    assert outcome(together, [USER, {**ANSWER, "tool_calls": []}, USER]) == "<user>Hi<assistant>Yes<user>Hi"
