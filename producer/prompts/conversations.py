"""Conversations as people write them, as messages: in OpenAI's form, ShareGPT's and TRL's, and as JSON text of each.

Knows the form of messages and of what a chat template gets beside them, and no template.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from models.chat import ChatInputs
from producer.errors import LineProblem
from producer.prompts.readers.literals import literal
from producer.prompts.readers.record import unique_fields

ROLES = ("system", "user", "assistant", "tool", "developer")

#: A role of OpenAI's first interface, for the answer to a `function_call`; templates get it as a tool's.
OLD_ROLE = "function"

#: The roles of ShareGPT's conversations, Gemini's, Cohere's and LangChain's, in any case.
ROLE_OF = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "chatbot": "assistant", "ai": "assistant",
    "tool": "tool", "observation": "tool", "developer": "developer",
    "function_response": "tool", "function_call": "assistant",
}  # fmt: skip

#: Types of content parts that hold text, in chats and in responses of OpenAI's interface.
TEXT_PARTS = ("text", "input_text", "output_text")

TOOL_FORM = '{"type": "function", "function": {"name": …, "parameters": …}}'

#: Fields of messages, beside the content or in parts of it, that are not text.
UNSEEN_MEDIA = (
    "image", "images", "image_url", "audio", "audios", "input_audio", "video", "videos", "file", "files",
    "attachments", "experimental_attachments", "inline_data", "inlineData", "file_data", "fileData",
)  # fmt: skip

#: Other names for the arguments of a tool call, which templates do not print.
OTHER_ARGUMENTS = ("parameters", "input", "args", "kwargs")

#: Names that a template gets from elsewhere.
RESERVED = frozenset({
    "messages", "conversation", "conversations", "tools", "documents", "chat_template", "tokenize",
    "add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask", "strftime_now",
    "raise_exception", "namespace", "dict",
})  # fmt: skip


@dataclass(frozen=True)
class ChatOptions:
    """The chat options of the command: they make chats of prompts, and give what a line's own chat leaves out."""

    is_chat: bool = False  # a plain prompt becomes a user's message
    system: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # a line's own go first

    def messages(self, prompt: str | None, messages: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """The line's conversation; None for a prompt that stays one."""
        if messages is None:
            if not self.is_chat and self.system is None:
                return None
            messages = [{"role": "user", "content": prompt}]
        if self.system is not None and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages


def parsed_messages(field: str, value: Any) -> list[dict[str, Any]]:
    """The messages of a list, or of its text in JSON or Python. Raises `LineProblem`."""
    messages = _parsed(field, value)
    if not isinstance(messages, list) or not messages:
        raise LineProblem(field, f"must be a list of at least one message, got {shorten(messages)}")
    return [_message(f"{field}[{index}]", message) for index, message in enumerate(messages)]


def chat_inputs(fields: dict[str, Any], options: ChatOptions) -> ChatInputs:
    """The tools, documents and template arguments of a chat's line, taken out of its fields. Raises `LineProblem`."""
    given = {name: _parsed(name, fields.pop(name, None)) for name in ("tools", "documents", "chat_template_kwargs")}
    for name in ("tools", "documents"):
        _check_objects(name, given[name])
    _check_tools(given["tools"] or [])
    arguments = given["chat_template_kwargs"] or {}
    if not isinstance(arguments, dict):
        raise LineProblem("chat_template_kwargs", f"must be an object, got {shorten(arguments)}")
    check_template_kwargs("chat_template_kwargs", arguments)
    return ChatInputs(
        tools=given["tools"] or None,
        documents=given["documents"] or None,
        chat_template_kwargs={**options.template_kwargs, **arguments} or None,
    )


def check_template_kwargs(field: str, arguments: dict[str, Any]) -> None:
    """Raises `LineProblem` for an argument that the template gets from elsewhere."""
    for name in arguments:
        if name in RESERVED or name.startswith("_"):
            raise LineProblem(field, f"has {name}, which the template gets from elsewhere; leave it out")


def is_message_list(value: Any) -> bool:
    """Whether a prompt is a conversation, as TRL's data sets have it."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _parsed(field: str, value: Any) -> Any:
    """A table's cell as a value: JSON, or a list as Python prints it. Raises `LineProblem`."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return literal(value)
    except ValueError as error:
        raise LineProblem(field, f"is text that is not JSON: {shorten(value)}") from error


def _check_objects(field: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise LineProblem(field, f"must be a list of objects, got {shorten(value)}")


def _check_tools(tools: list[dict[str, Any]]) -> None:
    """Raises `LineProblem` for a tool of OpenAI's that is a service and not a function, and for one without a name."""
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if isinstance(kind := tool.get("type", "function"), str) and kind != "function":
            raise LineProblem(f"{place}.type", f"is {shorten(kind)}, and a chat may only have tools of type function")
        if "input_schema" in tool:  # Anthropic's
            raise LineProblem(f"{place}.input_schema", f"is called parameters in a chat; write {TOOL_FORM}")
        if "function" in tool or tool.get("type") == "function":
            _check_tool_name(place, tool)


def _check_tool_name(place: str, tool: dict[str, Any]) -> None:
    function, inner = (tool["function"], f"{place}.function") if "function" in tool else (tool, place)
    if not isinstance(function, dict):
        raise LineProblem(inner, f"must be an object with a name, got {shorten(function)}")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise LineProblem(f"{inner}.name", f"must be a string, got {shorten(function.get('name'))}; write {TOOL_FORM}")


def _message(field: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise LineProblem(field, f"must be an object with role and content, got {shorten(given)}")
    message = _with_our_names(field, given)
    if message.get("role") not in (*ROLES, OLD_ROLE):
        raise LineProblem(f"{field}.role", f"must be one of {', '.join(ROLES)}, got {shorten(message.get('role'))}")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(name), str | None):
            raise LineProblem(f"{field}.{name}", f"must be a string, got {shorten(message[name])}")
    _check_unseen(field, message)
    calls = message.get("tool_calls")
    if calls is not None:
        _check_tool_calls(f"{field}.tool_calls", calls)
    if (call := message.get("function_call")) is not None:
        _check_function(f"{field}.function_call", call)
    if message.get("content") in (None, []) and (calls or message.get("function_call")):
        return {**message, "content": None} if "content" in message else message
    _check_content(f"{field}.content", message.get("content"))
    return message


def _with_our_names(field: str, given: dict[str, Any]) -> dict[str, Any]:
    """The message with `role` and `content`, for which ShareGPT and Gemini have words of their own, as for roles."""
    names = {"from": "role", "value": "content", "parts": "content"}
    moved = {names[name]: value for name, value in given.items() if name in names and names[name] not in given}
    rest = {name: value for name, value in given.items() if name not in names or names[name] in given}
    message = moved | rest
    named = message.get("role")
    role = ROLE_OF.get(named.lower(), named) if isinstance(named, str) and named not in (*ROLES, OLD_ROLE) else named
    if "role" in moved and role not in ROLES:
        raise LineProblem(f"{field}.from", f"must be one of {', '.join(ROLE_OF)}, got {shorten(named)}")
    if isinstance(named, str) and named.lower() == "function_call":
        return message | {"role": role, "content": None, "tool_calls": _call_of_text(field, message.get("content"))}
    return message if role == named else message | {"role": role}


def _call_of_text(field: str, value: Any) -> list[dict[str, Any]]:
    calls = _parsed(f"{field}.content", value)
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def _check_tool_calls(field: str, calls: Any) -> None:
    if not isinstance(calls, list):
        raise LineProblem(field, f"must be a list of calls, got {shorten(calls)}")
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        _check_function(f"{field}[{index}].function", call if function is None else function)


def _check_function(place: str, function: Any) -> None:
    """Raises `LineProblem` for what is not a call's name with arguments that can be read in one way only."""
    if not isinstance(function, dict):
        raise LineProblem(place, f"must be an object with name and arguments, got {shorten(function)}")
    if not isinstance(function.get("name"), str):
        raise LineProblem(f"{place}.name", f"must be a string, got {shorten(function.get('name'))}")
    if "arguments" not in function and (other := next((each for each in OTHER_ARGUMENTS if each in function), None)):
        raise LineProblem(f"{place}.{other}", "is called arguments in a chat; rename it")
    arguments = function.get("arguments")
    if not isinstance(arguments, dict | str | None):
        raise LineProblem(f"{place}.arguments", f"must be an object or its JSON, got {shorten(arguments)}")
    if isinstance(arguments, str):
        _check_argument_names(f"{place}.arguments", arguments)


def _check_argument_names(field: str, text: str) -> None:
    """Raises `LineProblem` for JSON with a name that comes twice; other text is the template's to take or refuse."""
    try:
        json.loads(text, object_pairs_hook=unique_fields)
    except LineProblem as problem:
        raise LineProblem(field, f"has {problem.field} twice, with different values; leave one out") from problem
    except (ValueError, RecursionError):
        return


def _check_unseen(field: str, message: dict[str, Any]) -> None:
    """Raises `LineProblem` for pictures and the like beside the content, which templates leave out in silence."""
    for name in UNSEEN_MEDIA:
        if message.get(name):
            raise LineProblem(f"{field}.{name}", "is not seen by the model: chats are text only; leave it out")


def _check_content(field: str, content: Any) -> None:
    if isinstance(content, list) and content:
        for index, part in enumerate(content):
            _check_part(f"{field}[{index}]", part)
    elif not isinstance(content, str):
        raise LineProblem(field, f"must be a string, got {shorten(content)}")


def _check_part(field: str, part: Any) -> None:
    if isinstance(part, str):
        return
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return _check_unseen(field, part)
    if isinstance(kind, str) and kind not in TEXT_PARTS:
        raise LineProblem(field, f"is of type {shorten(kind)}, and a chat may only hold parts of type text")
    raise LineProblem(field, f"must be a part with a text, got {shorten(part)}")


def shorten(value: Any) -> str:
    """The beginning of a value's JSON."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
