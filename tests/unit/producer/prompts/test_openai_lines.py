"""OpenAI's batch lines: what they ask for is done or refused by name, and answers are lines that its client reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from models.chat import keyed_messages
from models.params import GenerationParams
from producer.errors import LineProblem
from producer.prompts.grid import Grid, validate
from producer.prompts.job_drafts import Submission, read_lines
from producer.prompts.lines import PromptLine
from producer.prompts.openai_lines import CHAT_URL, COMPLETION_URL, native_line
from producer.results.openai_results import openai_lines
from tests.support.prompts import read_prompts

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**body: Any) -> dict[str, Any]:
    return {
        "custom_id": "a", "method": "POST", "url": CHAT_URL, "body": {"model": "m", "messages": MESSAGES, **body}
    }  # fmt: skip


def parameters(tmp_path: Path, record: dict[str, Any], **grid: list[Any]) -> GenerationParams:
    path = tmp_path / "batch.jsonl"
    path.write_text(json.dumps(record))
    ((_, line),) = read_prompts(path)
    assert isinstance(line, PromptLine), line
    ((params, _),) = Grid(grid).points(line.params, line.default_strategy)
    return validate(params)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {"strategy": "sample", "temperature": 1.0}),  # OpenAI's default
        ({"temperature": 0}, {"strategy": "greedy"}),
        ({"temperature": 0.7}, {"strategy": "sample", "temperature": 0.7}),
        ({"temperature": 0.7, "top_p": 0.5}, {"strategy": "sample", "temperature": 0.7, "top_p": 0.5}),
        ({"top_p": 1}, {"strategy": "sample"}),
        ({"max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_tokens": 7, "max_completion_tokens": 9}, {"max_new_tokens": 9}),
        ({"n": 3, "seed": 5, "stop": "x"}, {"n": 3, "seed": 5, "stop": ("x",)}),
        ({"logprobs": True, "top_logprobs": 4}, {"top_logprobs": 4}),
        ({"presence_penalty": 0.5, "frequency_penalty": -1}, {"presence_penalty": 0.5, "frequency_penalty": -1}),
        ({"logit_bias": {"12": -100}}, {"logit_bias": {12: -100}}),
        ({"stream": False, "user": "u", "tools": [], "response_format": {"type": "text"}}, {}),
    ],
)
def test_what_a_body_asks_for(tmp_path: Path, body: dict[str, Any], expected: dict[str, Any]) -> None:
    params = parameters(tmp_path, chat(**body))
    assert {name: getattr(params, name) for name in expected} == expected


def test_the_commands_strategy_is_taken_where_the_line_names_none(tmp_path: Path) -> None:
    assert parameters(tmp_path, chat(), strategy=["greedy"]).strategy == "greedy"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (chat(tool_choice="required"), "body.tool_choice"),
        (chat(response_format={"type": "json_object"}), "body.response_format"),
        (chat(stream=True), "body.stream"),
        (chat(reasoning_effort="high"), "body.reasoning_effort"),
        (chat(top_logprobs=3), "body.top_logprobs"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "body.messages[0].content[0]"),
        ({**chat(), "url": "/v1/embeddings"}, "url"),
        ({**chat(), "method": "GET"}, "method"),
        ({"custom_id": "a", "url": COMPLETION_URL, "body": {"prompt": ["a", "b"]}}, "body.prompt"),
        ({"custom_id": "a", "url": COMPLETION_URL, "body": {"prompt": "a", "logprobs": True}}, "body.logprobs"),
    ],
)
def test_what_is_not_supported_is_named(record: dict[str, Any], field: str) -> None:
    with pytest.raises(LineProblem) as raised:
        native_line(record)
    assert raised.value.field == field


def test_parts_of_text_are_joined() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    line = native_line(chat(messages=[{"role": "user", "content": content}]))
    assert line["messages"] == [{"role": "user", "content": content}]
    assert keyed_messages(line["messages"]) == [{"role": "user", "content": "ab"}]


def row(**values: Any) -> dict[str, Any]:
    token = {"token": "Hé", "logprob": -0.5, "top_logprobs": [{"token": "Hé", "logprob": -0.5}]}
    return {
        "job_id": 7, "custom_id": "a", "state": "succeeded", "model": "m", "messages": MESSAGES, "metadata": None,
        "params": {"top_logprobs": 1}, "sample_index": 0, "text": "Hé", "finish_reason": "eos", "prompt_tokens": 3,
        "completion_tokens": 1, "finished_at": datetime(2026, 1, 1, tzinfo=UTC), "trace": [token], "error": None,
        "error_code": None, **values,
    }  # fmt: skip


def test_answers_are_what_the_client_reads() -> None:
    rows = [row(), row(sample_index=1, finish_reason="length"), row(job_id=8, messages=None)]
    (_, first), (_, second) = openai_lines(rows)
    completion = ChatCompletion.model_validate(first["response"]["body"])
    assert [choice.finish_reason for choice in completion.choices] == ["stop", "length"]
    assert completion.usage is not None and completion.usage.completion_tokens == 2
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert bytes(logprobs.content[0].bytes or []).decode() == "Hé"
    text = Completion.model_validate(second["response"]["body"])
    assert text.choices[0].logprobs is not None and text.choices[0].logprobs.tokens == ["Hé"]


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [("failed", "PromptTooLong", 400), ("failed", "EngineDied", None), ("expired", "Expired", None)],
)
def test_what_has_no_answer_has_its_code(state: str, code: str, status: int | None) -> None:
    ((is_answered, line),) = openai_lines([row(state=state, error_code=code, error="why", text=None)])
    assert not is_answered
    assert line["error"] == {"code": code, "message": "why"}
    assert (line["response"] or {}).get("status_code") == status


def test_jobs_that_are_not_final_have_no_line() -> None:
    assert list(openai_lines([row(state="running", text=None)])) == []


@pytest.mark.parametrize(
    ("models", "warning"),
    [
        ([], None),
        (["own", None, "own"], None),
        (["own", "gpt-4o"], "1 line asks for another model ('gpt-4o') in body.model, and own@main answers"),
        (["b", "a", "a"], "3 lines ask for another model ('a', 'b') in body.model, and own@main answers"),
        (
            ["a", "b", "c", "d", "own@main"],
            "4 lines ask for another model ('a', 'b', 'c' and others) in body.model, and",
        ),
        ([7], "1 line asks for another model (7) in body.model"),
    ],
)
def test_other_models_that_lines_ask_for_are_told_of_once(
    tmp_path: Path, models: list[Any], warning: str | None
) -> None:
    path = tmp_path / "batch.jsonl"
    lines = [{**chat(model=model), "custom_id": f"{number}"} for number, model in enumerate(models)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, {"prompt": "a line of our own"}]))
    warnings: dict[str, str] = {}
    read = list(read_lines(Submission(path, "own@main", Grid({})), frozenset(), warnings))
    assert not any(line.problem for line in read)
    found = warnings.get("body.model")
    assert found is None if warning is None else found is not None and found.startswith(f"{path}: {warning}")
