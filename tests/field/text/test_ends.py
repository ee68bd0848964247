"""The ends of answers: end tokens, stop tokens, stop strings and the length, for each strategy.

Each answer is decoded by a real engine, stored in a real database and exported as OpenAI's formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sqlalchemy import Engine as Database
from transformers import AutoModelForCausalLM, LlamaConfig

from models.database.connection import open_database
from models.params import GenerationParams
from models.states import FinishReason, JobState
from producer.results.answer_tokens import answer_tokens, distinct_names
from producer.results.openai_results import openai_lines
from producer.results.queries import results
from tests.support.table_rows import RUN_ID, insert_run
from tests.support.tokenizer_families import tokenizer_of
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import prepare_model
from worker.engine.request import Completion, Request
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.registry import Registry

PROMPT = "Once upon a time, the hedgehog"
LENGTH = 24

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"strategy": "greedy"},
    "samples": {"strategy": "sample", "n": 3, "seed": 5},
    "nucleus": {"strategy": "nucleus", "top_p": 0.9, "seed": 6},
    "beams": {"strategy": "beam", "num_beams": 4, "num_return": 3},
    "one beam": {"strategy": "beam"},
    "penalized beams": {"strategy": "beam", "num_beams": 3, "num_return": 3, "repetition_penalty": 1.3},
}

FAMILIES = ("byte-level", "llama2", "unigram", "word-piece-cleaning")


@dataclass(frozen=True)
class Ending:
    """The parameters that end an answer, from the tokens and the text of one that has no end."""

    finish_reason: FinishReason
    is_cut: bool = False  # the text ends before the tokens do

    def params(self, whole: Completion, vocab_size: int) -> dict[str, Any]:
        """Beams go ways of their own when some of them end: they meet ends wherever they go."""
        place, is_beam = len(whole.text) // 2, whole.score is not None
        token_ids = tuple(range(0, vocab_size, 3)) if is_beam else whole.token_ids[LENGTH // 3 : LENGTH // 2]
        if self.finish_reason is FinishReason.EOS:
            return {"eos_token_ids": token_ids}
        if self.finish_reason is FinishReason.LENGTH:
            return {"ignore_eos": True}
        if self.is_cut:
            return {"ignore_eos": True, "stop": [*"aeiourstn"] if is_beam else whole.text[place : place + 3]}
        return {"ignore_eos": True, "stop_token_ids": token_ids}


ENDINGS = {
    "eos": Ending(FinishReason.EOS),
    "stop tokens": Ending(FinishReason.STOP),
    "stop string": Ending(FinishReason.STOP, is_cut=True),
    "length": Ending(FinishReason.LENGTH),
}


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {family: random_engine(family) for family in FAMILIES}


def random_engine(family: str) -> Engine:
    """A random model over a family's vocabulary."""
    tokenizer = tokenizer_of(family)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    loaded = prepare_model(family, model, tokenizer, torch.device("cpu"))
    return Engine(loaded, EngineConfig(kv_memory=0.05, max_num_seqs=16))


def ask(engine: Engine, **params: Any) -> tuple[Completion, ...]:
    given = GenerationParams.model_validate({"max_new_tokens": LENGTH, "top_logprobs": 4, **params})
    (output,) = engine.generate([Request(1, engine.encode(PROMPT), given)])
    assert output.error is None
    return output.completions


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending(ending: str, strategy: str, family: str, engines: dict[str, Engine]) -> None:
    engine, how = engines[family], ENDINGS[ending]
    whole = ask(engine, **STRATEGIES[strategy], ignore_eos=True)[0]
    params = {**STRATEGIES[strategy], **how.params(whole, engine.loaded.limits.vocab_size)}
    completions = ask(engine, **params)
    assert how.finish_reason in {done.finish_reason for done in completions}
    for done in completions:
        check_completion(engine, done, params)


def check_completion(engine: Engine, done: Completion, params: dict[str, Any]) -> None:
    """The text is what the tokens add to the prompt, the sum is over all tokens, and the trace has them all."""
    trace = done.trace
    assert trace is not None
    assert len(trace.logprobs) == len(trace.tokens) == len(done.token_ids)
    assert done.cumulative_logprob == pytest.approx(sum(trace.logprobs), abs=1e-9)
    given = GenerationParams.model_validate(params)
    enders = {*(given.eos_token_ids or ()), *given.stop_token_ids}
    answer = done.token_ids[:-1] if done.token_ids[-1] in enders else done.token_ids
    prompt_ids = list(engine.encode(PROMPT))
    decode = engine.loaded.tokenizer.decode
    text = decode([*prompt_ids, *answer]).removeprefix(decode(prompt_ids))
    starts = [text.index(stop) for stop in given.stop if stop in text]
    assert done.text == text[: min(starts, default=len(text))]
    assert "".join(trace.tokens[: len(answer)]) == text
    check_answer_tokens(done)


def check_answer_tokens(done: Completion) -> None:
    """The tokens that clients read join to the text, in characters and in bytes."""
    trace = done.trace
    assert trace is not None and trace.top_logprobs is not None
    columns = zip(
        trace.tokens,
        trace.token_bytes or [None] * len(trace.tokens),
        trace.logprobs,
        trace.top_logprobs,
        done.token_ids,
        strict=True,
    )
    names = ("token", "token_bytes", "logprob", "top_logprobs", "token_id")
    rows = [dict(zip(names, row, strict=True)) for row in columns]
    tokens = answer_tokens({"text": done.text, "finish_reason": done.finish_reason, "trace": rows})
    assert "".join(token.text for token in tokens) == done.text
    joined = b"".join(token.data or b"" for token in tokens)
    assert joined == done.text.encode() or "\ufffd" in done.text
    for token in tokens:
        assert len(distinct_names(token.alternatives)) == len(token.alternatives) == 4


def test_what_a_client_reads(sqlite_url: str, sqlite_database: Database, engines: dict[str, Engine]) -> None:
    """The same through the database, for chats and for completions."""
    engine = engines["byte-level"]
    (whole,) = ask(engine, ignore_eos=True)
    stop = whole.text[len(whole.text) // 2 :][:3]
    given = GenerationParams(max_new_tokens=LENGTH, stop=(stop,), top_logprobs=4, ignore_eos=True)
    job_ids = insert_run(sqlite_database, 2, params=given.stored)
    Registry(sqlite_database, "w", 30).register(host="here", device="cpu", model="toy", max_num_seqs=8)
    store = JobStore(sqlite_database, "w", 30)
    requests = [Request(job_id, engine.encode(PROMPT), given) for job_id in job_ids]
    outputs = {output.request_id: output for output in engine.generate(requests)}
    store.commit([FinishedJob(claim, outputs[claim.job_id]) for claim in store.claim(job_ids)])
    rows = list(results(open_database(sqlite_url, read_only=True), RUN_ID, with_traces=True))
    assert {row["state"] for row in rows} == {JobState.SUCCEEDED}
    rows[1]["messages"] = [{"role": "user", "content": PROMPT}]
    (_, text), (_, chat) = openai_lines(rows)
    (choice,) = text["response"]["body"]["choices"]
    assert choice["text"] == whole.text[: whole.text.index(stop)]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert [len(each) for each in choice["logprobs"]["top_logprobs"]] == [4] * len(choice["logprobs"]["tokens"])
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    (choice,) = chat["response"]["body"]["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == choice["message"]["content"]
    joined = bytes(byte for token in content for byte in token["bytes"])
    assert joined.decode(errors="replace") == choice["message"]["content"]


TOKEN = {"logprob": -0.5, "top_logprobs": None}
EURO = [("", "e2"), ("", "82"), ("€", "ac")]


@pytest.mark.parametrize(
    ("text", "finish_reason", "trace", "expected"),
    [
        ("€", "eos", [*EURO, ("<eos>", None)], [("", b"\xe2"), ("", b"\x82"), ("€", b"\xac")]),
        ("a", "stop", [("a", "61e2"), ("€", "82ac")], [("a", b"a")]),
        ("€a", "stop", [("", "e2"), ("€abc", "82ac616263")], [("", b"\xe2"), ("€a", b"\x82\xaca")]),
        ("", "stop", [*EURO], []),
        ("a\ufffd", "length", [("a\ufffd", "61e2")], [("a\ufffd", b"a\xe2")]),
        ("ab", "stop", [("a", None), ("bcd", None), ("e", None)], [("a", b"a"), ("b", b"b")]),
        ("€", "eos", [("", None), ("€", None), ("<eos>", None)], [("", b""), ("€", b"\xe2\x82\xac")]),
    ],
)  # fmt: skip
def test_the_tokens_of_an_answer(
    text: str, finish_reason: str, trace: list[tuple[str, str | None]], expected: list[tuple[str, bytes]]
) -> None:
    """The last row is one of 0.1, which knew no bytes."""
    rows = [{**TOKEN, "token": token, "token_bytes": data} for token, data in trace]
    tokens = answer_tokens({"text": text, "finish_reason": finish_reason, "trace": rows})
    assert [(token.text, token.data) for token in tokens] == expected


def test_alternatives_with_equal_texts_keep_their_names() -> None:
    others = [
        {"token_id": 4, "token": "\ufffd", "bytes": "e2", "logprob": -1.0},
        {"token_id": 5, "token": "\ufffd", "bytes": "f09f", "logprob": -1.5},
        {"token_id": 6, "token": "a", "logprob": -2.0},
        {"token_id": 7, "token": "a", "logprob": -2.5},
        {"token_id": 8, "token": "\ufffd", "logprob": -3.0},
        {"token_id": 9, "token": "\ufffd", "logprob": -3.5},
    ]
    row = {"token": "a", "token_bytes": None, "logprob": -2.0, "top_logprobs": others}
    (token,) = answer_tokens({"text": "a", "finish_reason": "length", "trace": [row]})
    assert list(distinct_names(token.alternatives)) == [
        "bytes:\\xe2", "bytes:\\xf0\\x9f", "a", "token_id:7", "\ufffd", "token_id:9"
    ]  # fmt: skip
    assert [other.data for other in token.alternatives] == [b"\xe2", b"\xf0\x9f", b"a", b"a", None, None]
