"""A conversation as the model's prompt: its chat template rendered in Jinja2's sandbox, without Transformers.

The template comes from where Transformers takes it: `chat_template.jinja`, or the tokenizer's configuration.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any


def render_chat(model: str, messages: list[dict[str, Any]]) -> str | None:
    """The conversation as text up to the answer; None for a folder without a template that can be rendered."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    source, special = _template_of(Path(model))
    if source is None:
        return None

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        return environment.from_string(source).render(messages=messages, add_generation_prompt=True, **special)
    except TemplateError:
        return None  # the worker reports why it refuses the conversation


def _template_of(folder: Path) -> tuple[str | None, dict[str, str]]:
    config: dict[str, Any] = {}
    if (file := folder / "tokenizer_config.json").is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
    special = {
        name: token["content"] if isinstance(token, dict) else token
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (token := config.get(name)) is not None
    }
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8"), special
    source = config.get("chat_template")
    return (source if isinstance(source, str) else None), special
