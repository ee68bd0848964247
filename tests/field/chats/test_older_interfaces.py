"""Conversations of older and other interfaces: function calls, services as tools, messages as text, odd contents."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.chat import ChatInputs
from producer.errors import LineProblem
from producer.model_files.folder import ModelFiles
from producer.prompts.prompt_check import PromptCheck
from tests.conftest import TOY_MODEL
from tests.field.chats.test_chat_sources import drafts_of

TEMPLATES = Path(__file__).parent.parent / "fixtures" / "chat_templates"
USER = {"role": "user", "content": "Hi"}
CALL = {"name": "look", "arguments": '{"at": 1}'}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "function_call": CALL}
AS_TOOL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
RESULT, TOOL_RESULT = ({"role": role, "name": "look", "content": "a hedgehog"} for role in ("function", "tool"))

PRINTS_OLD = (
    "{% for m in messages %}[{{ m.role }}]{% if m.function_call %}{{ m.function_call.name }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def check_of(template: str, folder: Path) -> PromptCheck:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_MODEL / name, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return PromptCheck(ModelFiles("toy", folder), created_at=datetime(2024, 5, 17, tzinfo=UTC))


def family(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["qwen", "llama-3"])
@pytest.mark.parametrize("content", [None, "", ...])
def test_a_function_call_is_printed_as_the_tool_call_that_it_is(name: str, content: Any, tmp_path: Path) -> None:
    check = check_of(family(name), tmp_path)
    calling = {key: value for key, value in CALLING.items() if key != "content" or content is not ...}
    if content is not ...:
        calling["content"] = content
    tools = check.text([USER, AS_TOOL | {"content": ""}, TOOL_RESULT], ChatInputs())
    assert check.text([USER, calling, RESULT], ChatInputs()) == tools
    assert "look" in tools and "hedgehog" in tools


@pytest.mark.parametrize("name", ["chatml", "gemma", "phi", "deepseek", "mistral", "granite", "lists"])
def test_a_function_call_that_a_template_drops_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LineProblem, match=r"does not print the function call of messages\[1\]|refuses it"):
        check_of(family(name), tmp_path).text([USER, CALLING, USER], ChatInputs())


def test_a_template_that_knows_function_calls_gets_them(tmp_path: Path) -> None:
    assert check_of(PRINTS_OLD, tmp_path).text([USER, CALLING, RESULT], ChatInputs()) == (
        "[user]Hi[assistant]look[function]a hedgehog"
    )


def test_a_chat_that_ends_with_a_function_call_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(LineProblem, match=r"messages\[1\] \(role assistant\) ends the chat and has no text"):
        check_of(family("qwen"), tmp_path).text([USER, CALLING], ChatInputs())


def test_what_a_template_raises_is_told_in_one_line(tmp_path: Path) -> None:
    check = check_of("{{ raise_exception('no\n\nway') }}", tmp_path)
    with pytest.raises(LineProblem, match="^the chat template refuses it: TemplateError: no way$"):
        check.text([USER], ChatInputs())


def draft_of(folder: Path, line: dict[str, Any], warnings: dict[str, str] | None = None, **options: Any) -> Any:
    path = folder / "a.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    (draft,) = drafts_of(path, warnings, **options)
    return draft


def test_the_role_function_is_taken_and_its_key_is_its_own(tmp_path: Path) -> None:
    draft = draft_of(tmp_path, {"messages": [USER, CALLING, RESULT]})
    assert draft.messages == [USER, CALLING, RESULT]


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ({"role": "human", "content": "Hi"}, "user"), ({"role": "User", "content": "Hi"}, "user"),
        ({"role": "model", "content": "Hi"}, "assistant"), ({"role": "CHATBOT", "content": "Hi"}, "assistant"),
        ({"from": "Human", "value": "Hi"}, "user"), ({"from": "ai", "content": "Hi"}, "assistant"),
        ({"role": "gpt", "value": "Hi"}, "assistant"), ({"role": "Developer", "content": "Hi"}, "developer"),
    ],
)  # fmt: skip
def test_words_of_other_tools_for_roles_are_ours(given: dict[str, Any], role: str, tmp_path: Path) -> None:
    draft = draft_of(tmp_path, {"messages": [USER, given, USER]})
    assert draft.messages == [USER, {"role": role, "content": "Hi"}, USER]


def test_parts_of_gemini_are_contents(tmp_path: Path) -> None:
    contents = [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Yo"}]}]
    draft = draft_of(tmp_path, {"contents": contents}, messages_column="contents")
    assert draft.messages == [{"role": "user", "content": [{"text": "Hi"}]},
                              {"role": "assistant", "content": [{"text": "Yo"}]}]  # fmt: skip
    with pytest.raises(LineProblem, match=r"contents\[0\].content\[0\] must be a part with a text"):
        draft_of(tmp_path, {"contents": [{"parts": [{"inlineData": {}}], "role": "user"}]}, messages_column="contents")


@pytest.mark.parametrize("name", ["parameters", "input", "args"])
def test_arguments_under_another_name_are_not_lost(name: str, tmp_path: Path) -> None:
    """No template would print them."""
    calls = [{"type": "function", "function": {"name": "look", name: {"at": 1}}}]
    with pytest.raises(LineProblem, match=rf"tool_calls\[0\].function.{name} is called arguments in a chat; rename it"):
        draft_of(tmp_path, {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}, USER]})


def test_an_empty_list_beside_tool_calls_is_no_content(tmp_path: Path) -> None:
    draft = draft_of(tmp_path, {"messages": [USER, {**AS_TOOL, "content": []}, TOOL_RESULT]})
    assert draft.messages[1] == AS_TOOL


@pytest.mark.parametrize("kind", ["custom", "web_search_preview", "code_interpreter", "file_search", "mcp"])
def test_a_tool_that_is_a_service_is_refused(kind: str, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}, {"type": kind, kind: {"name": "x"}}]
    with pytest.raises(LineProblem, match=rf'tools\[1\].type is "{kind}", and a chat may only have tools of type'):
        draft_of(tmp_path, {"messages": [USER], "tools": tools})
    plain = [{"name": "look", "parameter_definitions": {}}, {"type": {"a": 1}}]  # as Cohere's templates take them
    assert draft_of(tmp_path, {"messages": [USER], "tools": plain}).chat == {"tools": plain}


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "text",
    [json.dumps(MESSAGES), json.dumps(MESSAGES, indent=1), repr(MESSAGES), "[{'from': 'human'}\n {'from': 'gpt'}]"],
)
def test_a_prompt_that_is_the_text_of_messages_is_warned_about(text: str, tmp_path: Path) -> None:
    warnings: dict[str, str] = {}
    assert draft_of(tmp_path, {"prompt": text}, warnings).prompt == text
    (warning,) = warnings.values()
    assert "a.jsonl:1: prompt looks like a list of messages, and is taken as text; --messages-column" in warning


@pytest.mark.parametrize("text", ['[{"name": "x"}]', "[1, 2]", "Sort [{'role': 'user'}]", '{"role": "user"}'])
def test_other_json_is_a_prompt_without_a_word(text: str, tmp_path: Path) -> None:
    warnings: dict[str, str] = {}
    draft_of(tmp_path, {"prompt": text}, warnings)
    assert not warnings


@pytest.mark.parametrize(
    ("field", "inner"),
    [
        ("params", "temperature"), ("config", "max_new_tokens"), ("kwargs", "top_p"), ("llm_kwargs", "max_tokens"),
        ("settings", "topK"), ("textGenerationConfig", "maxTokenCount"), ("decoding", "num_beams"),
    ],
)  # fmt: skip
def test_an_object_with_parameters_of_any_name_is_warned_about(field: str, inner: str, tmp_path: Path) -> None:
    warnings: dict[str, str] = {}
    draft = draft_of(tmp_path, {"prompt": "x", field: {"model": "m", inner: 1}}, warnings)
    assert draft.metadata == {field: {"model": "m", inner: 1}}
    (warning,) = warnings.values()
    assert f"{field} is kept as metadata and changes nothing: write its {inner} into the line itself" in warning
    warnings.clear()
    draft_of(tmp_path, {"prompt": "x", field: {inner: 1}}, warnings, metadata_columns=field)
    draft_of(tmp_path, {"prompt": "x", "metadata": {inner: 1}, "meta": {"seed": 1, "n": 2, "stop": "x"}}, warnings)
    assert not warnings


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("candidateCount", 2, "did you mean n"), ("maxTokenCount", 5, "did you mean max_new_tokens"),
        ("custom_stopping_strings", ["x"], "did you mean stop"), ("systemInstruction", "x", "does not see it"),
        ("preamble", "x", "does not see it"), ("history", [["a", "b"]], "does not see it"),
        ("chat_history", [{"role": "User"}], "does not see it"), ("text_input", "x", "does not see it"),
    ],
)  # fmt: skip
def test_names_of_more_tools_are_warned_about(name: str, value: Any, word: str, tmp_path: Path) -> None:
    warnings: dict[str, str] = {}
    draft_of(tmp_path, {"prompt": "x", name: value}, warnings)
    (warning,) = warnings.values()
    assert name in warning and word in warning


@pytest.mark.parametrize(("name", "value"), [("banned_strings", ["x"]), ("ebnf", "x"), ("ban_eos_token", True)])
def test_what_more_tools_do_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(LineProblem, match=f"^{name} "):
        draft_of(tmp_path, {"prompt": "x", name: value})


def test_values_that_turn_a_rule_off_in_transformers_are_taken_with_do_sample(tmp_path: Path) -> None:
    line = {"prompt": "x", "do_sample": True, "temperature": 0.7, "top_k": 0, "min_p": 0, "top_p": 0.9}
    params = draft_of(tmp_path, line).params
    assert (params.strategy, params.temperature, params.top_p) == ("sample", 0.7, 0.9)
    assert params.top_k is None and params.min_p is None
