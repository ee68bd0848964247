"""The tool calls of a conversation as chat templates take them: `arguments` as values, not as JSON text.

Clients of OpenAI's interface write the arguments as text; most templates walk through them. Knows no template:
callers hand over the function that renders one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from models.chat import Messages


def template_messages(messages: Messages) -> list[dict[str, Any]]:
    """The messages with the JSON text of each tool call's arguments decoded; all else is as it was."""
    return [_decoded_message(message) for message in messages]


def render_tool_calls(render: Callable[[Messages], str], messages: Messages) -> str:
    """The conversation as `render` writes it, with decoded arguments.

    A template that joins the arguments as text raises there, and gets them as they were written.
    """
    decoded = template_messages(messages)
    try:
        return render(decoded)
    except Exception:
        as_text = None if decoded == list(messages) else _rendered(render, messages)
        if as_text is None:
            raise
        return as_text


def _rendered(render: Callable[[Messages], str], messages: Messages) -> str | None:
    """The conversation, or None where the template refuses this form too: the first error is the one to tell."""
    try:
        return render(messages)
    except Exception:
        return None


def _decoded_message(message: Mapping[str, Any]) -> dict[str, Any]:
    decoded = dict(message)
    if isinstance(calls := message.get("tool_calls"), list):
        decoded["tool_calls"] = [_decoded_call(call) for call in calls]
    if isinstance(call := message.get("function_call"), Mapping):  # the form before tool calls
        decoded["function_call"] = _decoded_arguments(call)
    return decoded


def _decoded_call(call: Any) -> Any:
    """A call, with its `function` beside an id as OpenAI has it, or without one."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _decoded_arguments(function)}
    return _decoded_arguments(call)


def _decoded_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """The function with its arguments decoded where they are the text of a JSON object; empty text is an empty one."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return dict(function)
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return dict(function)  # the template says whether it takes such text
    return {**function, "arguments": value} if isinstance(value, dict) else dict(function)
