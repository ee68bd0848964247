"""Lines of OpenAI's Batch API, translated to native ones. Knows the fields of a body, not their valid values.

Source: the batch and chat completion reference of the OpenAI API.
"""

from __future__ import annotations

from typing import Any

from producer.errors import LineProblem

CHAT_URL, COMPLETION_URL = "/v1/chat/completions", "/v1/completions"

#: Fields of a body that mean the same here, under the same name.
SAME = ("n", "seed", "stop", "presence_penalty", "frequency_penalty", "logit_bias")

#: Fields that change nothing about the answer, kept as metadata.
KEPT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")

#: Values that ask for nothing special.
HARMLESS = {
    "stream": False, "echo": False, "best_of": 1, "response_format": {"type": "text"}, "suffix": None,
    "modalities": ["text"], "parallel_tool_calls": True, "tools": [], "tool_choice": "none",
}  # fmt: skip


def is_openai_line(record: dict[str, Any]) -> bool:
    return "body" in record and "url" in record


def native_line(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a native line. Raises `LineProblem`."""
    url, body = record["url"], record["body"]
    if record.get("method", "POST") != "POST":
        raise LineProblem("method", f"must be POST, got {record['method']!r}")
    if url not in (CHAT_URL, COMPLETION_URL):
        raise LineProblem("url", f"must be {CHAT_URL} or {COMPLETION_URL}, got {url!r}")
    if not isinstance(body, dict):
        raise LineProblem("body", f"must be an object, got {body!r:.60}")
    body = {name: value for name, value in body.items() if value is not None}
    body.pop("model", None)  # the run's own model answers
    line: dict[str, Any] = {"url": url}
    if "custom_id" in record:
        line["custom_id"] = record["custom_id"]
    line |= _messages(body) if url == CHAT_URL else _prompt(body)
    line |= {name: body.pop(name) for name in SAME if name in body}
    line |= {name: body.pop(name) for name in KEPT if name in body}
    line |= _length(body) | _sampling(body) | _logprobs(body, url)
    for name, value in body.items():
        if name not in HARMLESS or HARMLESS[name] != value:
            raise LineProblem(f"body.{name}", f"is not supported ({value!r:.60}); leave it out")
    return line


def _messages(body: dict[str, Any]) -> dict[str, Any]:
    messages = body.pop("messages", None)
    if not isinstance(messages, list):
        raise LineProblem("body.messages", "must be a list of messages")
    return {"messages": [_plain(message, index) for index, message in enumerate(messages)]}


def _plain(message: Any, index: int) -> Any:
    """A message whose content is one string; parts of text are joined."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    texts = []
    for part in message["content"]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise LineProblem(f"body.messages[{index}].content", "may only hold parts of type text")
        texts.append(part["text"])
    return {**message, "content": "".join(texts)}


def _prompt(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body.pop("prompt", None)
    if not isinstance(prompt, str):
        raise LineProblem("body.prompt", "must be one string; give each prompt a line of its own")
    return {"prompt": prompt}


def _length(body: dict[str, Any]) -> dict[str, Any]:
    given = [body.pop(name) for name in ("max_completion_tokens", "max_tokens") if name in body]
    return {"max_new_tokens": given[0]} if given else {}


def _sampling(body: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's temperature 0 is greedy decoding, its top_p is nucleus sampling, and its default is to sample."""
    temperature, top_p = body.pop("temperature", None), body.pop("top_p", None)
    if temperature == 0 and not isinstance(temperature, bool):
        return {"strategy": "greedy"}
    params = {} if temperature is None else {"temperature": temperature}
    if top_p is not None and top_p != 1:
        return {"strategy": "nucleus", **params, "top_p": top_p}
    return {"strategy": "sample", **params} if params or top_p is not None else {}


def _logprobs(body: dict[str, Any], url: str) -> dict[str, Any]:
    """`logprobs` is true or false for chats, a number of alternatives for completions."""
    wanted, top = body.pop("logprobs", None), body.pop("top_logprobs", None)
    if url == COMPLETION_URL:
        if isinstance(wanted, bool) or not isinstance(wanted, int | None):
            raise LineProblem("body.logprobs", f"must be a whole number, got {wanted!r}")
        return {} if wanted is None else {"logprobs": True, "top_logprobs": wanted}
    if top is not None and not wanted:
        raise LineProblem("body.top_logprobs", "needs logprobs: true")
    if not wanted:
        return {}
    return {"logprobs": True} | ({"top_logprobs": top} if top is not None else {})
