"""Templates of ten families: the engine, the dry run and Transformers write the same prompt, or refuse it by name."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from models.chat import ChatInputs, prompt_hash
from models.params import GenerationParams
from producer.errors import InvalidInput, LineProblem, UsageError
from producer.model_files.folder import ModelFiles, model_files
from producer.prompts.dry_run import seen_prompt
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import JobDraft, Submission
from producer.prompts.prompt_check import PromptCheck
from producer.prompts.validation import check
from tests.conftest import TOY_MODEL, Producer
from tests.support.model_folders import edit_json
from worker.engine.request import InvalidRequest
from worker.engine.text.chat_template import ChatTemplate
from worker.engine.text.tokenizer import load_tokenizer

TEMPLATES = Path(__file__).parent.parent / "fixtures" / "chat_templates"
FAMILIES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)

Messages = list[dict[str, Any]]
USER, ANSWER, MORE = ({"role": role, "content": f"{role} {n}"} for n, role in enumerate(("user", "assistant", "user")))
SYSTEM, DEVELOPER = {"role": "system", "content": "Be brief"}, {"role": "developer", "content": "Be brief"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLED: Messages = [USER, CALLING, {"role": "tool", "content": "a hedgehog"}]
PARTS: Messages = [{"role": "user", "content": [{"type": "text", "text": " a"}, {"type": "text", "text": "b "}]}]
TOOLS = ChatInputs(tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}])
DOCUMENTS = ChatInputs(documents=[{"title": "t", "text": "Hedgehogs sleep"}])
QUIET = ChatInputs(chat_template_kwargs={"enable_thinking": False})
NONE = ChatInputs()

CONVERSATIONS: dict[str, tuple[Messages, ChatInputs]] = {
    "question": ([USER], NONE),
    "turns": ([USER, ANSWER, MORE], NONE),
    "system": ([SYSTEM, USER], NONE),
    "two-users": ([USER, MORE], NONE),
    "continued": ([USER, ANSWER], NONE),
    "quiet": ([USER], QUIET),
    "developer": ([DEVELOPER, USER], NONE),
    "parts": (PARTS, NONE),
    "called": (CALLED, NONE),
    "tools": ([USER], TOOLS),
    "documents": ([USER], DOCUMENTS),
}

NO_TOOLS, NO_DOCUMENTS = "does not print tools", "does not print documents"
NO_CALLS = "does not print the tool calls of messages[1] (role assistant)"

#: The conversations that a family's template does not take, each with a part of the sentence about it.
REFUSED: dict[str, dict[str, str]] = {
    **{
        family: {"called": NO_CALLS, "tools": NO_TOOLS, "documents": NO_DOCUMENTS}
        for family in ("chatml", "deepseek", "lists", "lists-or-text", "phi")
    },
    "gemma": {
        "system": "System role not supported", "called": NO_CALLS, "tools": NO_TOOLS, "documents": NO_DOCUMENTS,
    },
    "granite": {"called": NO_CALLS, "tools": NO_TOOLS},
    "llama-3": {"tools": NO_TOOLS, "documents": NO_DOCUMENTS},
    "mistral": {
        "two-users": "roles must alternate", "called": "refuses it", "tools": NO_TOOLS, "documents": NO_DOCUMENTS,
    },
    "qwen": {"documents": NO_DOCUMENTS},
}  # fmt: skip

CASES = [(family, name) for family in FAMILIES for name in CONVERSATIONS]


@cache
def folder_of(family: str, base: Path) -> Path:
    """The toy model's small files with the family's template."""
    folder = base / family
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_MODEL / name, folder)
    shutil.copy(TEMPLATES / f"{family}.jinja", folder / "chat_template.jinja")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@cache
def tokenizer_of(family: str, base: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder_of(family, base))


@cache
def template_of(family: str, base: Path) -> ChatTemplate:
    return ChatTemplate(family, tokenizer_of(family, base))


def files_of(folder: Path) -> ModelFiles:
    files = model_files(str(folder))
    assert files is not None
    return files


def check_of(family: str, base: Path) -> PromptCheck:
    return PromptCheck(files_of(folder_of(family, base)), created_at=NOON)


def oracle(family: str, base: Path, messages: Messages, inputs: ChatInputs) -> str:
    """The prompt as Transformers writes it, at noon."""
    is_continued = messages[-1]["role"] == "assistant"
    tokenizer = tokenizer_of(family, base)
    compiled = chat_template_utils._compile_jinja_template(tokenizer.get_chat_template(tools=inputs.tools))
    compiled.globals["strftime_now"] = NOON.strftime
    return str(
        tokenizer.apply_chat_template(
            messages,
            tools=inputs.tools,
            documents=inputs.documents,
            tokenize=False,
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
            **(inputs.chat_template_kwargs or {}),
        )
    )


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] not in REFUSED.get(case[0], {})])
def test_engine_and_dry_run_write_what_transformers_writes(family: str, name: str, base: Path) -> None:
    messages, inputs = CONVERSATIONS[name]
    text = template_of(family, base).text(messages, inputs, NOON)
    assert check_of(family, base).text(messages, inputs) == text
    if name == "developer" and "developer" not in text:
        messages = [SYSTEM, *messages[1:]]  # the mapping that is universal
    if name == "parts" and not family.startswith("lists"):
        messages = [{"role": "user", "content": " ab "}]
    if family == "lists":
        texts = [m if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}] for m in messages]
        messages = [{**m, "content": t} if t is not m else m for m, t in zip(messages, texts, strict=True)]
    if name == "called" and family == "qwen":
        call = {**CALL, "function": {"name": "look", "arguments": {"at": 1}}}
        messages = [USER, {**CALLING, "tool_calls": [call]}, messages[2]]
    assert text == oracle(family, base, messages, inputs)


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] in REFUSED.get(case[0], {})])
def test_what_a_template_does_not_print_is_refused_by_both(family: str, name: str, base: Path) -> None:
    messages, inputs = CONVERSATIONS[name]
    with pytest.raises(InvalidRequest) as by_engine:
        template_of(family, base).text(messages, inputs, NOON)
    with pytest.raises(LineProblem) as by_producer:
        check_of(family, base).text(messages, inputs)
    assert str(by_engine.value) == str(by_producer.value)
    assert REFUSED[family][name] in str(by_engine.value)


@pytest.mark.parametrize("role", ["tool", "developer", "system"])
def test_a_role_that_is_not_printed_is_named(role: str, base: Path) -> None:
    messages = [USER, ANSWER, {"role": role, "content": "x"}, MORE]
    if role in ("system", "developer"):  # which Phi prints anywhere
        assert "<|system|>\nx" in template_of("phi", base).text(messages, NONE, NOON)
        return
    with pytest.raises(InvalidRequest, match=r"does not print messages\[2\] \(role tool\); leave it out, or"):
        template_of("phi", base).text(messages, NONE, NOON)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_that_the_assistant_ends_stays_open(family: str, base: Path) -> None:
    text = template_of(family, base).text([USER, {"role": "assistant", "content": "It is"}], NONE, NOON)
    assert text.endswith("It is")
    asked = template_of(family, base).text([USER], NONE, NOON)
    assert template_of(family, base).text([USER, {"role": "assistant", "content": ""}], NONE, NOON) == asked
    with pytest.raises(InvalidRequest, match=r"messages\[1\] \(role assistant\) ends the chat and has no text"):
        template_of(family, base).text(CALLED[:2], NONE, NOON)


@pytest.mark.parametrize("family", ["llama-3", "granite"])
def test_a_template_that_prints_the_date_prints_the_jobs_own_in_utc(family: str, base: Path) -> None:
    late = datetime(2024, 5, 17, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    for moment, day in [(NOON, "17"), (late, "18"), (NOON, "17")]:
        text = template_of(family, base).text([USER], NONE, moment)
        assert f"{day} May 2024" in text or f"May {day}, 2024" in text


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] not in REFUSED.get(case[0], {})])
def test_the_dry_run_shows_the_text_that_the_engine_tokenizes(family: str, name: str, base: Path) -> None:
    messages, inputs = CONVERSATIONS[name]
    draft = JobDraft("a", None, messages, GenerationParams(), 5, {}, None, inputs.stored)
    before = datetime.now(UTC)
    seen = seen_prompt(str(folder_of(family, base)), draft)
    moments = (before, datetime.now(UTC))  # some print the date, which changes at midnight
    assert seen.doubt is None and seen.num_tokens
    assert seen.text in [template_of(family, base).text(messages, inputs, moment) for moment in moments]


def test_the_dry_run_shows_the_special_tokens_that_are_added(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="a"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    seen = seen_prompt(str(tmp_path), JobDraft("a", "a b a b", None, GenerationParams(), 5, {}, None))
    assert (seen.text, seen.num_tokens) == ("<s>a b a b</s>", 6)
    seen = seen_prompt(str(tmp_path), JobDraft("a", "<s>a b", None, GenerationParams(), 5, {}, None))
    assert (seen.text, seen.num_tokens) == ("<s>a b</s>", 4)  # the engine does not double it either


#: Special tokens as folders of several years name them: the tokenizer's configuration, and the file beside it.
SPECIAL_TOKENS: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"bos_token": None}, {"bos_token": "<s>", "eos_token": {"content": "</s>"}}),
    ({"bos_token": "<b>"}, {"bos_token": "<s>"}),
    ({"bos_token": "<b>", "added_tokens_decoder": {}}, {"bos_token": "<s>"}),
    ({"image_token": "<img>", "extra_special_tokens": {"boi_token": "<boi>"}}, None),
    ({"extra_special_tokens": ["<x>"], "add_bos_token": True, "bos_token": "<s>"}, None),
]


@pytest.mark.parametrize(("config", "special_tokens_map"), SPECIAL_TOKENS)
def test_a_template_sees_the_special_tokens_that_the_worker_shows_it(
    config: dict[str, Any], special_tokens_map: dict[str, Any] | None, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of("chatml", base), tmp_path / "model")
    names = ("bos_token", "eos_token", "pad_token", "image_token", "boi_token")
    (folder / "chat_template.jinja").write_text(
        "|".join(f"{{{{ {name} }}}}" for name in names) + "{{ messages[0].content }}"
    )
    edit_json(folder / "tokenizer_config.json", **{"added_tokens_decoder": ..., **config})
    if special_tokens_map is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special_tokens_map))
    text = ChatTemplate("model", load_tokenizer(str(folder))).text([USER], NONE, NOON)
    assert PromptCheck(files_of(folder), created_at=NOON).text([USER], NONE) == text


def test_the_dry_run_says_where_it_cannot_know(tmp_path: Path) -> None:
    seen = seen_prompt(str(tmp_path / "elsewhere"), JobDraft("a", "x", None, GenerationParams(), 5, {}, None))
    assert seen.text == "x" and "not at hand" in str(seen.doubt)


def checked(folder: Path, *lines: dict[str, Any], **options: Any) -> Any:
    path = folder / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    prompts = PromptCheck(files_of(folder), **options)
    return check(Submission(path, str(folder), Grid({}), seed=1, prompt_check=prompts)), prompts


CHAT = {"messages": [USER]}


def test_a_model_without_a_template_is_told_before_anything_is_written(tmp_path: Path, base: Path) -> None:
    folder = shutil.copytree(folder_of("chatml", base), tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="has no chat template; give prompts instead of messages"):
        checked(folder, {"prompt": "x"}, CHAT)
    assert checked(folder, {"prompt": "x"})[0].num_jobs == 1
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="has several chat templates and none is the default: rag, tool_use"):
        checked(folder, CHAT)
    with pytest.raises(InvalidRequest, match="has several chat templates and none is the default: rag, tool_use"):
        ChatTemplate("model", AutoTokenizer.from_pretrained(folder)).text([USER], NONE, NOON)


def test_every_line_is_rendered_and_its_fault_named(base: Path) -> None:
    with pytest.raises(InvalidInput) as raised:
        checked(folder_of("gemma", base), CHAT, {"messages": [SYSTEM, USER]}, CHAT, {"messages": CALLED})
    lines = str(raised.value).splitlines()
    assert "lines.jsonl:2: the chat template refuses it: TemplateError: System role not supported" in lines[0]
    assert "lines.jsonl:4: the chat template does not print the tool calls of messages[1]" in lines[1]
    assert lines[2].startswith("2 errors; nothing was submitted; --skip-invalid submits the other 2 jobs")


def test_an_argument_that_the_template_does_not_know_is_warned_about(base: Path) -> None:
    report, _ = checked(folder_of("qwen", base), CHAT | {"chat_template_kwargs": {"enable_thinkin": False}})
    (warning,) = report.warnings.values()
    assert ":1: enable_thinkin: the chat template of" in warning and "has no such variable and ignores it" in warning
    assert not checked(folder_of("qwen", base), CHAT | {"chat_template_kwargs": {"enable_thinking": 1}})[0].warnings


@pytest.mark.parametrize(("family", "is_left_out"), [("llama-3", True), ("qwen", False)])
def test_content_that_a_template_leaves_out_beside_tool_calls_is_warned_about(
    family: str, is_left_out: bool, base: Path
) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    said = {"role": "assistant", "content": 'I look "there" first.', "tool_calls": [call]}
    lines = [{"messages": [USER, {**said, "content": text}, {"role": "tool", "content": "12", "name": "weather"}, USER]}
             for text in (None, said["content"], said["content"])]  # fmt: skip
    warnings = list(checked(folder_of(family, base), *lines)[0].warnings.values())
    assert len(warnings) == is_left_out
    for warning in warnings:
        assert ":2: messages[1] (role assistant): the chat template of" in warning
        assert warning.endswith("prints the tool calls and leaves the content out")


def test_a_prompt_longer_than_the_window_is_named_and_short_ones_are_not_tokenized(base: Path) -> None:
    folder = folder_of("chatml", base)
    report, prompts = checked(folder, {"prompt": "short " * 10}, CHAT, context_window=200)
    assert report.num_jobs == 2 and "tokenizer" not in vars(prompts.files)
    length = len(tokenizer_of("chatml", base)("long " * 300)["input_ids"])
    with pytest.raises(InvalidInput, match=rf":2: prompt has {length} tokens, and the context window of .* is 200; at"):
        checked(folder, CHAT, {"prompt": "long " * 300}, context_window=200)
    with pytest.raises(InvalidInput, match=r":1: messages has [\d,]+ tokens, and the context window"):
        checked(folder, {"messages": [{"role": "user", "content": "long " * 300}]}, context_window=200)
    assert checked(folder, {"prompt": "long " * 300}, context_window=length + 1)[0].num_jobs == 1


def test_a_run_keeps_what_the_model_saw(producer: Producer, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("llama-3", base), tmp_path / "model")
    for name in ("model.safetensors", "generation_config.json"):
        shutil.copy(TOY_MODEL / name, folder)
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [SYSTEM, USER], "max_new_tokens": 1, "stop": "x"}))
    producer("run", "a.jsonl", "--model", "model", "--keep-prompts", "--name", "kept")
    statement = "select prompt_hash, prompt_text, created_at, params from job_results"
    (row,) = json.loads(producer("sql", "--format", "json", statement).stdout)
    created_at = datetime.fromisoformat(row["created_at"]).replace(tzinfo=UTC)
    assert row["prompt_text"] == template_of("llama-3", base).text([SYSTEM, USER], NONE, created_at)
    ids = load_tokenizer(str(folder))(row["prompt_text"], add_special_tokens=False)["input_ids"]
    assert row["prompt_hash"] == prompt_hash(ids)
