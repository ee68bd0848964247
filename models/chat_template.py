"""The template that Transformers would take for a conversation, and its rendering by Transformers' own renderer.

Producer and worker find the templates in different places and render them alike, in a process that bounds each
rendering. Imports no Transformers: that process does, by the module's name, and it loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.chat import ChatInputs, Messages
from models.chat_rendering import ChatExceeded, ChatRefused, template_error
from models.templates.process import TemplateExceeded, TemplateFailed, renderer_process

RENDERER = "transformers.utils.chat_template_utils"


def chosen_template(model: str, templates: Mapping[str, str], *, has_tools: bool) -> str:
    """The template to render, of a model's templates by name; a single one is named `default`. Raises `ChatRefused`."""
    if not templates:
        raise ChatRefused(f"{model} has no chat template; give prompts instead of messages")
    if has_tools and "tool_use" in templates:
        return templates["tool_use"]
    if "default" not in templates:
        raise ChatRefused(
            f"{model} has several chat templates and none is the default: {', '.join(sorted(templates))}; "
            "copy the one you want to chat_template.jinja in its folder"
        )
    return templates["default"]


def bounded_chat(
    template: str,
    messages: Messages,
    inputs: ChatInputs,
    *,
    clock: datetime,
    special_tokens: Mapping[str, Any],
    is_continued: bool = False,
    is_closed: bool = False,
) -> str:
    """The conversation as `rendered` writes it, within bounds of time and memory. Raises `ChatRefused`."""
    try:
        text = renderer_process.ask(
            "chat",
            renderer=RENDERER,
            template=template,
            messages=list(map(dict, messages)),
            inputs=inputs.model_dump(mode="json"),
            clock=clock.isoformat(),
            special_tokens=dict(special_tokens),
            is_continued=is_continued,
            is_closed=is_closed,
        )
    except TemplateFailed as error:
        raise template_error(error.kind, str(error)) from error
    except TemplateExceeded as error:
        raise ChatExceeded(f"the chat template {error}; use another model, or shorten the chat") from error
    return str(text)


def rendered(
    renderer: Any,
    template: str,
    messages: Messages,
    inputs: ChatInputs,
    *,
    clock: datetime,
    special_tokens: Mapping[str, Any],
    is_continued: bool = False,
    is_closed: bool = False,
) -> str:
    """The conversation as text, up to the answer; `renderer` is `transformers.utils.chat_template_utils`.

    With `is_continued` the last message is left open, with `is_closed` no answer is asked for.
    """
    # The renderer compiles a template once; its clock can be set in the compiled template's globals only.
    renderer._compile_jinja_template(template).globals["strftime_now"] = clock.strftime
    texts = renderer.render_jinja_template(
        conversations=[list(map(dict, messages))],
        tools=list(inputs.tools) if inputs.tools else None,
        documents=inputs.documents or None,
        chat_template=template,
        continue_final_message=is_continued,
        add_generation_prompt=not (is_continued or is_closed),
        **{**special_tokens, **(inputs.chat_template_kwargs or {})},
    )
    return str(texts[0][0])
