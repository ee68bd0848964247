"""A model's small files as the producer reads them, beside Transformers' reading of the same folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from models.chat import ChatInputs
from producer.errors import UsageError
from producer.model_files.chat_template import ChatRefused, render_chat
from producer.model_files.folder import ModelFiles, model_files
from tests.conftest import TOY_MODEL

NOON = datetime(2026, 2, 3, 12, 5, tzinfo=UTC)
CHAT: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>'é'</b>"}]


def folder_with(tmp_path: Path, **files: Any) -> ModelFiles:
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return ModelFiles("m", tmp_path)


def test_the_toy_model_reads_as_transformers_reads_it() -> None:
    files = model_files(str(TOY_MODEL))
    theirs = AutoTokenizer.from_pretrained(TOY_MODEL)
    assert files is not None and files.tokenizer is not None
    assert files.context_window == 1024 and files.generation_config["eos_token_id"] is not None
    assert files.special_tokens.items() <= theirs.special_tokens_map.items()
    text = render_chat(files, CHAT, created_at=NOON)
    assert text == theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert (
        files.tokenizer.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False).input_ids
    )


def test_an_added_token_has_an_id_of_any_vocabulary(tmp_path: Path) -> None:
    added = {"7": {"content": "<a>"}, "9" * 5_000: {"content": "<b>"}, "x": {"content": "<c>"}}
    files = folder_with(tmp_path, tokenizer_config_dot_json={"added_tokens_decoder": added})
    assert files.added_tokens == {"<a>": 7}


def test_an_unknown_name_has_no_files() -> None:
    assert model_files("nobody/nothing-of-this-name") is None
    assert model_files("no/such/../folder") is None


def test_a_template_sees_the_time_it_is_given(tmp_path: Path) -> None:
    files = folder_with(tmp_path, chat_template_dot_jinja="{{ strftime_now('%d %b %Y %H:%M') }}")
    for moment, date in ((NOON, "03 Feb 2026 12:05"), (NOON.replace(year=2025, hour=1), "03 Feb 2025 01:05")):
        assert render_chat(files, CHAT, created_at=moment) == date


def test_templates_come_from_files_first_and_a_tool_template_is_for_tools(tmp_path: Path) -> None:
    configured = {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}
    files = folder_with(tmp_path, tokenizer_config_dot_json=configured)
    assert render_chat(files, CHAT, created_at=NOON) == "D"
    assert render_chat(files, CHAT, inputs=ChatInputs(tools=[{"type": "function"}]), created_at=NOON) == "T"
    other = folder_with(tmp_path, additional_chat_templates__rag_dot_jinja="R", chat_template_dot_jinja="F")
    assert other.chat_templates == {"default": "F", "rag": "R"}


def test_a_conversation_is_continued_on_demand(tmp_path: Path) -> None:
    body = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    files = folder_with(tmp_path, chat_template_dot_jinja=body + "{% if add_generation_prompt %}<a>{% endif %}")
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is"}]
    assert render_chat(files, chat, created_at=NOON, is_continued=True) == "<user>q</><assistant>It is"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no chat template"),
        (
            {"tokenizer_config_dot_json": {"chat_template": [{"name": "rag", "template": "R"}]}},
            "none is the default: rag",
        ),
        ({"chat_template_dot_jinja": "{{ raise_exception('roles must alternate') }}"}, "TemplateError: roles must"),
        ({"chat_template_dot_jinja": "{{ messages[0].content + 1 }}"}, "TypeError"),
        ({"chat_template_dot_jinja": "{% if %}"}, "TemplateSyntaxError"),
    ],
)
def test_an_error_says_why(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(ChatRefused, match=words):
        render_chat(folder_with(tmp_path, **files), CHAT, created_at=NOON)


@pytest.mark.parametrize(("name", "attribute"), [("config", "config"), ("generation_config", "generation_config")])
@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not JSON"), ("[]", "must hold a JSON object"), ("\x00", "JSON")]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, attribute: str, content: str, words: str) -> None:
    files = folder_with(tmp_path, **{f"{name}_dot_json": content})
    with pytest.raises(UsageError, match=words) as raised:
        getattr(files, attribute)
    assert str(tmp_path / f"{name}.json") in str(raised.value)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a tokenizer"):
        _ = folder_with(tmp_path, tokenizer_dot_json="{}").tokenizer
