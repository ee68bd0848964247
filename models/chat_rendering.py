"""Renders conversations through a chat template: every message must be printed, and a continued one stays open.

A template may take contents as text or as lists of parts, may know the role `developer` or not, and may leave messages
out in silence. A sentinel in the place of each content shows which, once for each sequence of roles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from models.chat import ChatInputs, Messages, content_text, is_continued
from models.tool_calls import render_tool_calls

#: Renders messages with the template's other inputs, the time that it may print, and whether the last is left open.
Render = Callable[[Messages, ChatInputs, datetime, bool], str]

#: Fields of a message that hold the model's reasoning.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")

MAX_REMEMBERED = 10_000


class ChatRefused(ValueError):
    """The model's chat template takes no conversation, or not this one; the message says why."""


class ChatExceeded(ChatRefused):
    """The chat template takes too much time or memory for this conversation; it is not tried in another form."""


@dataclass(frozen=True)
class Form:
    """The form in which a template prints every message of a sequence of roles."""

    contents: Literal["as given", "joined", "wrapped"]  # lists of parts joined, or texts wrapped in lists
    is_developer_system: bool = False
    has_empty_contents: bool = False  # tool calls without content get an empty one
    has_tools_alone: bool = False  # OpenAI's function_call and role function become tool_calls and tool
    is_probed: bool = True  # false: the template takes no sentinels

    def of(self, messages: Messages) -> list[dict[str, Any]]:
        return [self._message(message) for message in messages]

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        formed = {name: value for name, value in message.items() if _is_given(name, value)}
        if self.is_developer_system and formed["role"] == "developer":
            formed["role"] = "system"
        if self.has_tools_alone:
            formed = _of_tools(formed)
        if self.has_empty_contents and _calls_tools(formed):
            formed.setdefault("content", "")
        if "content" in formed:
            formed["content"] = self._content(formed["content"])
        return formed

    def _content(self, content: Any) -> Any:
        if self.contents == "joined":
            return content_text(content)
        parts = content if isinstance(content, list) else [content]
        if self.contents == "wrapped" or isinstance(content, list):
            return [{"type": "text", "text": part if isinstance(part, str) else part["text"]} for part in parts]
        return content


@dataclass(frozen=True)
class Probed:
    """The form of a conversation, or its refusal, and whether all others of its shape have the same."""

    form: Form | ChatRefused
    is_of_shape: bool  # false: the template raised, for which arguments or an id may be the reason


class ChatRenderer:
    """Conversations as one template prints them; remembers the form of each sequence of roles."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._forms: dict[Any, Form | ChatRefused] = {}

    def text(self, messages: Messages, inputs: ChatInputs, created_at: datetime) -> str:
        """The conversation up to the answer. Raises `ChatRefused`."""
        messages = _without_empty_end(messages)
        if is_continued(messages) and not content_text(messages[-1].get("content")).strip():
            raise ChatRefused(
                f"messages[{len(messages) - 1}] (role assistant) ends the chat and has no text to continue"
            )
        clock = created_at.astimezone(UTC).replace(tzinfo=None)  # templates expect times without a zone
        form = self._form(messages, inputs, clock)
        text = self._rendered(form.of(messages), inputs, clock)
        if not form.is_probed and (problem := _missing(text, messages)) is not None:
            raise ChatRefused(problem)
        return text

    def _form(self, messages: Messages, inputs: ChatInputs, clock: datetime) -> Form:
        key = _shape(messages, inputs)
        if (found := self._forms.get(key)) is None:
            probed = self._probe(messages, inputs, clock)
            found = probed.form
            if probed.is_of_shape:
                if len(self._forms) >= MAX_REMEMBERED:
                    self._forms.clear()
                self._forms[key] = found
        if isinstance(found, ChatRefused):
            raise ChatRefused(str(found))
        return found

    def _probe(self, messages: Messages, inputs: ChatInputs, clock: datetime) -> Probed:
        """The first form in which the template prints everything. Raises `ChatRefused` with the template's reason."""
        probe = _Probe(messages, inputs)
        problems: list[tuple[int, str]] = []
        has_raised = False
        for form in _candidates(messages):
            try:
                text = self._rendered(form.of(probe.messages), probe.inputs, clock)
            except ChatExceeded:
                raise
            except ChatRefused:
                has_raised = True
                continue
            if (problem := probe.unprinted(text)) is None:
                return Probed(form, is_of_shape=True)
            problems.append(problem)
        if problems:  # the sentence of the form that prints the most
            return Probed(ChatRefused(max(problems)[1]), is_of_shape=not has_raised)
        form = Form("as given", is_probed=False)
        self._rendered(form.of(messages), inputs, clock)  # raises the template's own reason
        return Probed(form, is_of_shape=False)

    def _rendered(self, messages: Messages, inputs: ChatInputs, clock: datetime) -> str:
        try:
            return render_tool_calls(
                lambda decoded: self._render(decoded, inputs, clock, is_continued(decoded)), messages
            )
        except ChatRefused:
            raise
        except Exception as error:  # a template may raise anything
            raise template_error(type(error).__name__, str(error)) from error


def template_error(kind: str, message: str) -> ChatRefused:
    """The refusal for an exception that the template raised."""
    reason = " ".join(message.replace("\0", "\ufffd").split())[:500]  # PostgreSQL has no NUL
    return ChatRefused(f"the chat template refuses it: {kind}: {reason}")


class _Probe:
    """A conversation with a sentinel in the place of each text that a template is to print."""

    def __init__(self, messages: Messages, inputs: ChatInputs) -> None:
        self._num = 0
        self._wanted: list[tuple[str, list[str]]] = []  # the sentence about it, and its sentinels: one is enough
        self.messages = [self._message(index, message) for index, message in enumerate(messages)]
        self.inputs = ChatInputs(
            tools=None if inputs.tools is None else [self._tool(tool) for tool in inputs.tools],
            documents=None if inputs.documents is None else [self._document(each) for each in inputs.documents],
            chat_template_kwargs=inputs.chat_template_kwargs,
        )

    def unprinted(self, text: str) -> tuple[int, str] | None:
        """The number of the first thing that is not in the text, and the sentence about it; None where all is."""
        for number, (problem, sentinels) in enumerate(self._wanted):
            if not any(_is_printed(sentinel, text) for sentinel in sentinels):
                return number, problem
        return None

    def _sentinel(self) -> str:
        self._num += 1
        return f"7{self._num:06}4159"  # digits: no template changes their case

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        formed, content, calls = dict(message), message.get("content"), message.get("tool_calls")
        old_call = message.get("function_call")
        place = f"messages[{index}] (role {message['role']})"
        if content and isinstance(content, list):
            formed["content"] = [{"type": "text", "text": self._sentinel_of(_unprinted(place))} for _ in content]
        elif content is not None and not (content == "" and _calls_tools(message)):
            sentinels = [] if _calls_tools(message) else [self._sentinel_of(_unprinted(place))]
            formed["content"] = sentinels[0] if sentinels else self._sentinel()
        if isinstance(calls, list) and calls:
            formed["tool_calls"] = [self._call(call, f"the tool calls of {place}") for call in calls]
        if isinstance(old_call, Mapping):
            formed["function_call"] = self._call(old_call, f"the function call of {place}")
        return formed

    def _sentinel_of(self, problem: str) -> str:
        sentinel = self._sentinel()
        self._wanted.append((problem, [sentinel]))
        return sentinel

    def _call(self, call: Mapping[str, Any], place: str) -> dict[str, Any]:
        name = self._sentinel_of(_unprinted(place))
        if "function" in call:
            return {**call, "function": {**call["function"], "name": name}}
        return {**call, "name": name}

    def _tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        name = self._sentinel_of(
            "the chat template does not print tools; leave them out, or use a model that takes them"
        )
        if isinstance(function := tool.get("function"), dict):
            return {**tool, "function": {**function, "name": name}}
        return {**tool, "name": name}

    def _document(self, document: dict[str, Any]) -> dict[str, Any]:
        sentinels = {name: self._sentinel() for name, value in document.items() if isinstance(value, str)}
        if sentinels:
            problem = "the chat template does not print documents; leave them out, or use a model that takes them"
            self._wanted.append((problem, list(sentinels.values())))
        return {**document, **sentinels}


def _unprinted(place: str) -> str:
    return f"the chat template does not print {place}; leave it out, or give it another role"


def _is_printed(sentinel: str, text: str) -> bool:
    """Whether the text has the sentinel, and not as a part of a list that is printed as it is."""
    place = text.find(sentinel)
    return place >= 0 and _PRINTED_LIST.search(text, max(0, place - 20), place) is None


_PRINTED_LIST = re.compile(r"""["']text["']: ?["']$""")


def _is_given(name: str, value: Any) -> bool:
    """Whether a field says something: servers write an empty list of tool calls beside every text."""
    return value is not None and not (name == "tool_calls" and value == [])


def _calls_tools(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_call"))


def _is_old(message: Mapping[str, Any]) -> bool:
    return bool(message.get("function_call")) or message["role"] == "function"


def _of_tools(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its function call as a tool call, and with the role `tool` for `function`."""
    if message["role"] == "function":
        return {**message, "role": "tool"}
    rest = {name: value for name, value in message.items() if name != "function_call"}
    call = message.get("function_call")
    return {**rest, "tool_calls": [{"type": "function", "function": call}]} if call else rest


def _candidates(messages: Messages) -> list[Form]:
    """The forms to try, the plainest first."""
    has_lists = any(isinstance(message.get("content"), list) for message in messages)
    contents: list[Literal["as given", "joined", "wrapped"]] = ["as given", "wrapped"]
    if has_lists:
        contents.insert(1, "joined")
    has_developer = any(message["role"] == "developer" for message in messages)
    has_none = any(message.get("content") is None and _calls_tools(message) for message in messages)
    is_old = any(map(_is_old, messages))
    return [
        Form(each, is_system, has_empty_contents=is_empty, has_tools_alone=has_tools)
        for has_tools in (False, True)[: 1 + is_old]
        for is_system in (False, True)[: 1 + has_developer]
        for is_empty in (False, True)[: 1 + has_none]
        for each in contents
    ]


def _shape(messages: Messages, inputs: ChatInputs) -> Any:
    """A key of everything in a conversation that decides its form."""
    shapes = tuple(
        (
            message["role"],
            _kind(message.get("content")),
            len(message.get("tool_calls") or ()),
            _is_old(message),
            frozenset(name for name, value in message.items() if _is_given(name, value)),
        )
        for message in messages
    )
    kwargs = json.dumps(inputs.chat_template_kwargs, sort_keys=True) if inputs.chat_template_kwargs else ""
    return shapes, bool(inputs.tools), bool(inputs.documents), kwargs


def _kind(content: Any) -> Any:
    return len(content) if isinstance(content, list) else content if content in (None, "") else "text"


def _without_empty_end(messages: Messages) -> Messages:
    """The messages without an empty last one of the assistant, which only asks for the answer."""
    last = messages[-1]
    says_more = _calls_tools(last) or any(last.get(name) for name in THOUGHTS)
    is_empty = last["role"] == "assistant" and not content_text(last.get("content")) and not says_more
    return messages[:-1] if is_empty and len(messages) > 1 else messages


def _missing(text: str, messages: Messages) -> str | None:
    """The sentence about the first message whose text is not in the rendered one."""
    for index, message in enumerate(messages):
        if content_text(message.get("content")).strip() not in text:
            return _unprinted(f"messages[{index}] (role {message['role']})")
    return None
