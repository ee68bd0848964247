"""Batch lines as OpenAI's, Azure's and vLLM's clients write them: done, kept, or refused with name and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from producer.errors import LineProblem
from producer.options import DecodingOptions
from producer.prompts.job_drafts import JobDraft, Submission, read_lines
from producer.prompts.openai_lines import CHAT_URL, COMPLETION_URL, endpoint_of, native_line
from producer.prompts.records import ReaderOptions

MESSAGES = [{"role": "user", "content": "Hi"}]


def line_of(body: dict[str, Any], url: str = CHAT_URL, **beside: Any) -> dict[str, Any]:
    asked = {"messages": MESSAGES} if endpoint_of(url) == CHAT_URL else {"prompt": "Hi"}
    return {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **asked, **body}, **beside}


def draft_of(folder: Path, record: dict[str, Any], name: str = "a.jsonl", **options: Any) -> JobDraft:
    path = folder / name
    path.write_text(json.dumps(record), encoding="utf-8")
    warnings: dict[str, str] = {}
    submission = Submission(path, "m", DecodingOptions().grid(), reader=ReaderOptions(**options))
    (line,) = read_lines(submission, frozenset(), warnings)
    if line.problem is not None:
        raise line.problem
    assert not warnings
    return line.drafts[0]


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("/v1/chat/completions", CHAT_URL),
        ("/chat/completions", CHAT_URL),  # Azure's batches
        ("/v1/completions", COMPLETION_URL),
        ("/completions", COMPLETION_URL),
        ("https://api.openai.com/v1/chat/completions", CHAT_URL),
        ("https://x.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", CHAT_URL),
        ("/openai/v1/chat/completions/", CHAT_URL),
        ("/v1/responses", None),
        ("/v1/embeddings", None),
        ("https://[broken", None),
        (7, None),
    ],
)
def test_endpoints(url: Any, endpoint: str | None) -> None:
    assert endpoint_of(url) == endpoint
    if endpoint is None:
        with pytest.raises(LineProblem, match="url must be /v1/chat/completions or /v1/completions, got"):
            native_line(line_of({}, url))


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({"min_p": 0.1}, {"strategy": "sample", "min_p": 0.1}),
        ({"top_k": -1, "min_p": 0, "length_penalty": 1.0}, {"strategy": "sample", "top_k": None, "min_p": None}),
        ({"top_k": 0}, {"top_k": None}),
        ({"temperature": 0, "top_k": 20, "min_p": 0.1}, {"strategy": "greedy"}),
        ({"top_k": 20}, {"strategy": "sample", "top_k": 20}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"stop_token_ids": [3], "ignore_eos": True}, {"stop_token_ids": (3,), "ignore_eos": True}),
        ({"min_tokens": 4}, {"min_new_tokens": 4}),
        (
            {"include_stop_str_in_output": False, "skip_special_tokens": True, "spaces_between_special_tokens": True},
            {"strategy": "sample"},
        ),
        ({"add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False}, {}),
        ({"stream": False, "n": 1, "guided_json": None, "logit_bias": None, "stop": None, "tools": None}, {"n": 1}),
        ({"bad_words": [], "documents": [], "echo": False, "use_beam_search": False, "best_of": 1}, {}),
        ({"truncate_prompt_tokens": None, "priority": 0, "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"n": 2, "best_of": 2}, {"n": 2}),
        ({"logprobs": True, "top_logprobs": 3}, {"top_logprobs": 3}),
    ],
)
def test_the_fields_of_vllm_have_its_meaning(tmp_path: Path, body: dict[str, Any], params: dict[str, Any]) -> None:
    found = draft_of(tmp_path, line_of(body)).params
    assert {name: getattr(found, name) for name in params} == params


def test_enable_thinking_is_an_argument_of_the_template(tmp_path: Path) -> None:
    """As Qwen's own clients write it."""
    quiet = {"chat_template_kwargs": {"enable_thinking": False}}
    assert draft_of(tmp_path, line_of({"enable_thinking": False})).chat == quiet
    both = {"enable_thinking": False, "chat_template_kwargs": {"a": 1}}
    assert draft_of(tmp_path, line_of(both)).chat == {"chat_template_kwargs": {"a": 1, "enable_thinking": False}}
    with pytest.raises(LineProblem, match="body.chat_template_kwargs is not supported"):
        draft_of(tmp_path, line_of({"chat_template_kwargs": {"a": 1}}, COMPLETION_URL))


def test_what_changes_nothing_is_kept_and_so_is_what_stands_beside_the_body(tmp_path: Path) -> None:
    kept = {"metadata": {"topic": "cats"}, "service_tier": "auto", "user": "u", "store": True, "request_id": "r"}
    draft = draft_of(tmp_path, line_of(kept | {"stream": False}, topic="dogs", priority=9))
    assert draft.metadata == {**kept, "topic": "dogs", "url": CHAT_URL} and draft.priority == 9


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (line_of({"guided_json": {"type": "object"}}), r"body.guided_json \(\{'type': 'object'\}\) would bind"),
        (line_of({"structured_outputs": {"regex": "a"}}), r"body.structured_outputs \(.*'a'"),
        (line_of({"response_format": {"type": "json_object"}}), r"body.response_format \(.*json_object"),
        (line_of({"stream": True}), r"body.stream \(True\) would stream"),
        (line_of({"include_stop_str_in_output": True}), r"body.include_stop_str_in_output \(True\)"),
        (line_of({"skip_special_tokens": False}), r"body.skip_special_tokens \(False\)"),
        (line_of({"priority": -3}), r"body.priority \(-3\) .* beside the body"),
        (line_of({"tool_choice": "required"}), r"body.tool_choice \('required'\)"),
        (line_of({"add_special_tokens": True}), r"body.add_special_tokens \(True\) must be"),
        (line_of({"use_beam_search": True}), r"body.use_beam_search \(True\) .*num_beams"),
        (line_of({"prompt_logprobs": 0}), r"body.prompt_logprobs \(0\)"),
        (line_of({"best_of": 4, "n": 2}), r"body.best_of \(4\)"),
        (line_of({"logprobs": 5}), r"body.logprobs must be true or false, got 5; top_logprobs is the number"),
        (line_of({"stop": "x" * 2000}), r"none of them empty or of more than 1,000 characters"),
        (line_of({"what": 1}), r"body.what is not supported \(1\)"),
        (line_of({"echo": True}, COMPLETION_URL), r"body.echo \(True\)"),
        (line_of({"suffix": "end"}, COMPLETION_URL), r"body.suffix \('end'\)"),
        (line_of({}, temperature=0.5), r"temperature stands beside the body"),
        (line_of({"user": "u"}, user="v"), r"user stands beside the body and in it"),
    ],
)
def test_refusals_have_the_name_and_the_value(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(LineProblem, match=message):
        draft_of(tmp_path, record)


def test_a_page_with_an_address_and_a_body_is_a_row_of_data(tmp_path: Path) -> None:
    page = {"url": "https://example.org/completions-of-proofs", "body": "Once upon a time"}
    draft = draft_of(tmp_path, page, prompt_column="body")
    assert draft.prompt == page["body"] and draft.metadata == {"url": page["url"]}
    assert draft.params.strategy == "greedy"  # a column of addresses makes no request of a row
