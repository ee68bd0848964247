"""The ids that end a model's answers, joined from every place that names one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from models.model_defaults import MAX_TOKEN_IDS
from producer.model_files.chat_template import ChatRefused, render_chat
from producer.model_files.folder import ModelFiles

#: The end of a turn in ChatML: base models know the token and name it nowhere.
CHAT_END_TOKEN = "<|im_end|>"

#: A text that no template has.
ANSWER = "answer-3f9c"


def end_ids(files: ModelFiles) -> tuple[int, ...]:
    """The ids of the configs, of the tokenizer's own end, and of the chat template's end of turn, without repeats."""
    ids = [*_configured(files.generation_config), *_configured(files.text_config), *_configured(files.config)]
    tokens = [files.special_tokens.get("eos_token"), _mapped_eos(files), end_of_turn(files)]
    ids += [found for token in tokens if token is not None and (found := files.token_id(token)) is not None]
    if CHAT_END_TOKEN in files.added_tokens:
        ids.append(files.added_tokens[CHAT_END_TOKEN])
    return tuple(dict.fromkeys(each for each in ids if each < MAX_TOKEN_IDS))


def end_of_turn(files: ModelFiles) -> str | None:
    """The token that the default chat template closes an assistant's message with; None where it closes with text."""
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render_chat(files, messages, created_at=datetime(2026, 1, 1, tzinfo=UTC), is_closed=True)
    except ChatRefused:
        return None
    _, found, after = text.rpartition(ANSWER)
    after = after.lstrip() if found else ""
    tokens = [token for token in files.added_tokens if after.startswith(token)]
    return max(tokens, key=len, default=None)


def _mapped_eos(files: ModelFiles) -> str | None:
    """The end token of the file in which older tokenizers keep their special tokens."""
    token = files.json_file("special_tokens_map.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _configured(config: dict[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool) and each >= 0]
