"""Results in the format of OpenAI's Batch API: a line for each request, answered or not.

Source: the batch guide and the chat completion reference of the OpenAI API.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, groupby
from typing import Any

from models.states import JobState
from producer.prompts.openai_lines import CHAT_URL, COMPLETION_URL, endpoint_of
from producer.results.answer_tokens import AnswerToken, answer_tokens, distinct_names

#: Our finish reason -> OpenAI's.
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}

HTTP_STATUS_OF_CODE = {"PromptTooLong": 400, "InvalidRequest": 400, "DoesNotFit": 400}


def openai_lines(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[bool, dict[str, Any]]]:
    """For each final job whether it was answered, and its line; `rows` are those of `results` with traces."""
    for _, of_job in groupby(rows, key=lambda row: row["job_id"]):
        samples = list(of_job)
        if samples[0]["state"] == JobState.SUCCEEDED:
            yield True, _answered(samples)
        elif samples[0]["state"] in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
            yield False, _unanswered(samples[0])


def _answered(samples: list[dict[str, Any]]) -> dict[str, Any]:
    first = samples[0]
    is_chat = _url(first) == CHAT_URL
    completion_tokens = sum(sample["completion_tokens"] for sample in samples)
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{first['job_id']}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(first["finished_at"].timestamp()),
        "model": first["model"],
        "choices": [_chat_choice(sample) if is_chat else _text_choice(sample) for sample in samples],
        "usage": {
            "prompt_tokens": first["prompt_tokens"],
            "completion_tokens": completion_tokens,
            "total_tokens": first["prompt_tokens"] + completion_tokens,
        },
    }
    return {
        "id": f"batch_req_{first['job_id']}",
        "custom_id": first["custom_id"],
        "response": {"status_code": 200, "request_id": f"req_{first['job_id']}", "body": body},
        "error": None,
    }


def _unanswered(row: dict[str, Any]) -> dict[str, Any]:
    code = row["error_code"] or row["state"]
    response = None
    if code in HTTP_STATUS_OF_CODE:
        error = {"message": row["error"], "type": "invalid_request_error", "param": None, "code": code}
        status = HTTP_STATUS_OF_CODE[code]
        response = {"status_code": status, "request_id": f"req_{row['job_id']}", "body": {"error": error}}
    return {
        "id": f"batch_req_{row['job_id']}",
        "custom_id": row["custom_id"],
        "response": response,
        "error": {"code": code, "message": row["error"] or row["state"]},
    }


def _url(row: dict[str, Any]) -> str:
    """The endpoint that the line named; for a native line, chat for a conversation and completion for a prompt."""
    asked = endpoint_of((row["metadata"] or {}).get("url"))
    return asked or (CHAT_URL if row["messages"] else COMPLETION_URL)


def _wants_logprobs(row: dict[str, Any]) -> bool:
    return bool((row["metadata"] or {}).get("logprobs")) or bool(row["params"].get("top_logprobs"))


def _chat_choice(sample: dict[str, Any]) -> dict[str, Any]:
    content = [
        _token(token) | {"top_logprobs": [_token(other) for other in token.alternatives]}
        for token in answer_tokens(sample)
    ]
    return {
        "index": sample["sample_index"],
        "message": {"role": "assistant", "content": sample["text"], "refusal": None},
        "logprobs": {"content": content, "refusal": None} if _wants_logprobs(sample) else None,
        "finish_reason": FINISH_REASONS[sample["finish_reason"]],
    }


def _text_choice(sample: dict[str, Any]) -> dict[str, Any]:
    tokens = answer_tokens(sample)
    logprobs = {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [distinct_names(token.alternatives) for token in tokens],
        "text_offset": list(accumulate((len(token.text) for token in tokens), initial=0))[: len(tokens)],
    }
    return {
        "index": sample["sample_index"],
        "text": sample["text"],
        "logprobs": logprobs if _wants_logprobs(sample) else None,
        "finish_reason": FINISH_REASONS[sample["finish_reason"]],
    }


def _token(token: AnswerToken) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.logprob,
        "bytes": None if token.data is None else list(token.data),
    }
