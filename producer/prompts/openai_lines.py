"""Lines of OpenAI's Batch API, translated to native ones. Knows the fields of a body, not their valid values.

Source: the batch and chat completion reference of the OpenAI API.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from producer.errors import LineProblem
from producer.prompts.conversations import parsed_messages
from producer.prompts.foreign_fields import native_fields
from producer.prompts.foreign_names import WITHOUT_EFFECT
from producer.prompts.readers.record import CHAT_FIELDS, PARAMETER_FIELDS

CHAT_URL, COMPLETION_URL = "/v1/chat/completions", "/v1/completions"

#: vLLM's values that ask for nothing, of parameters that not every strategy takes.
NEUTRAL = {"top_k": (0, -1), "min_p": (0,), "length_penalty": (1,), "num_beams": (1,)}


def endpoint_of(url: Any) -> str | None:
    """The endpoint that a line's URL names, whole or as a path, with or without /v1, Azure's deployments too."""
    if not isinstance(url, str):
        return None
    try:
        path = urlsplit(url).path.rstrip("/")
    except ValueError:
        return None
    if path.endswith("/chat/completions"):
        return CHAT_URL
    return COMPLETION_URL if path.endswith("/completions") else None


#: Parameters of sampling, and the values of each that change nothing.
NEUTRAL_SAMPLING: dict[str, tuple[float, ...]] = {"temperature": (), "top_p": (1,), "top_k": (0, -1), "min_p": (0,)}


def is_openai_line(record: dict[str, Any]) -> bool:
    """Whether a record is a request; a web page with its URL and its body is not."""
    return "body" in record and "url" in record and ("method" in record or isinstance(record["body"], dict))


def asked_model(record: dict[str, Any]) -> Any:
    """The model that a request asks for, as it stands there; None where it names none."""
    body = record["body"]
    return body.get("model") if isinstance(body, dict) else None


def native_line(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a native line. Raises `LineProblem`."""
    url, body = record["url"], record["body"]
    if record.get("method", "POST") != "POST":
        raise LineProblem("method", f"must be POST, got {record['method']!r:.60}")
    if (endpoint := endpoint_of(url)) is None:
        raise LineProblem("url", f"must be {CHAT_URL} or {COMPLETION_URL}, got {url!r:.60}")
    if not isinstance(body, dict):
        raise LineProblem("body", f"must be an object, got {body!r:.60}")
    body = {name: value for name, value in body.items() if value is not None and (value or name not in CHAT_FIELDS)}
    body.pop("model", None)  # the run's own model answers; `asked_model` tells what it was
    line = _messages(body) if endpoint == CHAT_URL else _prompt(body)
    logprobs = _logprobs(body, endpoint)
    line |= _length(body) | _sampling(body)
    line = _parameters(line, body) | logprobs
    return line | _envelope(record, line)


def _parameters(line: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The body's other fields under our names, those of vLLM too. Raises `LineProblem` for one that is not known."""
    fields = {name: value for name, value in body.items() if value not in NEUTRAL.get(name, ())}
    if line.get("strategy") == "greedy":  # temperature 0, with which vLLM reads no other parameter of drawing
        fields = {name: value for name, value in fields.items() if name not in ("top_k", "min_p")}
    if (priority := fields.pop("priority", 0)) != 0:
        raise LineProblem(
            "body.priority", f"({priority!r:.60}) counts down in vLLM: write priority 0 … 9 beside the body"
        )
    native = native_fields(line | fields, place="body.")
    for name, value in native.items():
        if name == "chat_template_kwargs" and "messages" in line:
            continue  # of enable_thinking
        if name not in line and name not in PARAMETER_FIELDS and name not in WITHOUT_EFFECT:
            raise LineProblem(f"body.{name}", f"is not supported ({value!r:.60}); leave it out")
    return native


def _envelope(record: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    """The fields beside the body: its name, its priority, and metadata. Raises `LineProblem`."""
    for name in record:
        if name in PARAMETER_FIELDS or name in ("prompt", "messages", *CHAT_FIELDS):
            raise LineProblem(name, "stands beside the body; write it into the body")
        if name in line:
            raise LineProblem(name, "stands beside the body and in it; leave one out")
    return {name: value for name, value in record.items() if name not in ("method", "body")}


def _messages(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.pop("messages", None)
    if not isinstance(messages, list):
        raise LineProblem("body.messages", "must be a list of messages")
    chat = {name: body.pop(name) for name in CHAT_FIELDS if name in body}
    if body.get("tool_choice") == "none":  # the model is not to call any
        chat.pop("tools", None)
    return {"messages": parsed_messages("body.messages", messages), **chat}


def _prompt(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.pop("prompt", None)
    if not isinstance(prompt, str):
        raise LineProblem("body.prompt", "must be one string; give each prompt a line of its own")
    return {"prompt": prompt}


def _length(body: dict[str, Any]) -> dict[str, Any]:
    given = [body.pop(name) for name in ("max_completion_tokens", "max_tokens") if name in body]
    return {"max_new_tokens": given[0]} if given else {}


def _sampling(body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's default is to sample, its temperature 0 is greedy decoding; `top_k` and `min_p` are vLLM's.

    Values that change nothing are left out: a `top_p` of 1, a `top_k` of 0 or -1, a `min_p` of 0.
    """
    given = {name: body.pop(name) for name in NEUTRAL_SAMPLING if name in body}
    is_number = {name: isinstance(value, int | float) and not isinstance(value, bool) for name, value in given.items()}
    if given.get("temperature") == 0 and is_number["temperature"]:
        return {"strategy": "greedy"}
    params = {name: value for name, value in given.items() if not (is_number[name] and value in NEUTRAL_SAMPLING[name])}
    return {"strategy": "sample", **params} if given else {}


def _logprobs(body: dict[str, Any], url: str) -> dict[str, Any]:
    """`logprobs` is true or false for chats, a number of alternatives for completions."""
    wanted, top = body.pop("logprobs", None), body.pop("top_logprobs", None)
    if url == COMPLETION_URL:
        if isinstance(wanted, bool) or not isinstance(wanted, int | None):
            raise LineProblem("body.logprobs", f"must be a whole number, got {wanted!r:.60}")
        return {} if wanted is None else {"logprobs": True, "top_logprobs": wanted}
    if not isinstance(wanted, bool | None):
        raise LineProblem("body.logprobs", f"must be true or false, got {wanted!r:.60}; top_logprobs is the number")
    if top is not None and not wanted:
        raise LineProblem("body.top_logprobs", "needs logprobs: true")
    if not wanted:
        return {}
    return {"logprobs": True} | ({"top_logprobs": top} if top is not None else {})
