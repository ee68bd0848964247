"""The short form of `python -m benchmarks.model_matrix`: some types of each kind, packed, unpacked and refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.model_matrix.comparison import compared
from benchmarks.model_matrix.documentation import PAGE, page_with_table
from benchmarks.model_matrix.tiny import tiny_config, tiny_model
from models.checkpoint.paths.verdict import Verdict, store_verdict, stored_verdict, verdict_key
from tests.support.random_models import random_pair
from worker.engine.backend import LoadOptions
from worker.engine.device_selection import backend_for
from worker.engine.loading import self_check
from worker.engine.loading.checked_path import checked_path
from worker.engine.model.fused_layers import norm_of
from worker.engine.model.row_operations import HeadNorms, RMSNorm
from worker.engine.model_loader import UNBOUNDED_WINDOW, context_window, prepare_model
from worker.engine.request import ModelUnavailable

CPU = torch.device("cpu")

#: Attention sinks, unequal heads, steps beside the arguments, weights that are read, mixtures, soft caps, plain ones.
PACKED = (
    "gpt_oss", "gemma4_text", "nemotron", "stablelm", "hunyuan_v1_moe", "qwen3_moe", "gemma2", "opt", "phi3", "olmo2",
    "granite", "cohere2", "gpt2", "qwen3_5_text", "mamba",
)  # fmt: skip
#: Attention of their own, positions in biases, bidirectional ones, windows that are told to nobody, chunks.
FALLBACK = ("gptj", "bloom", "mpt", "diffllama", "moshi", "bert", "bart", "minimax")


@pytest.mark.parametrize(("path", "model_type"), [("packed", t) for t in PACKED] + [("fallback", t) for t in FALLBACK])
def test_a_mixed_batch_is_what_generate_says(path: str, model_type: str) -> None:
    row = compared(model_type)
    assert row.path == path, row
    assert row.is_right and row.greedy[1] == 8 and row.samples[1] == 2, row


def test_a_model_that_keeps_its_state_in_itself_is_refused() -> None:
    row = compared("recurrent_gemma")
    assert row.path == "refused" and "keeps its state in itself" in row.reason


def test_chunks_of_attention_are_packed() -> None:
    """Llama 4 without the temperature of its positions, which its packed rows would not know."""
    config = tiny_config("llama4_text")
    config.attn_temperature_tuning = False
    assert "chunked_attention" in config.layer_types
    assert self_check.check(config, backend_for(CPU), CPU, LoadOptions()).path == "packed"


def test_the_page_has_the_table_of_the_data() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with_table(page), "make matrix, or python -m benchmarks.model_matrix --docs"


def test_a_path_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of a packed Mistral is forgotten: each token then sees more than it should."""
    config = random_pair("mistral-window").reference.config
    assert self_check.check(config, backend_for(CPU), CPU, LoadOptions()).path == "packed"
    monkeypatch.setattr("worker.engine.model.fused_layers._window", lambda attention: None)  # noqa: ARG005
    verdict = self_check.check(config, backend_for(CPU), CPU, LoadOptions())
    assert verdict.path == "fallback" and verdict.difference is not None and verdict.difference > 0.1


def swapped(norms: HeadNorms) -> HeadNorms:
    return HeadNorms(norms.key, norms.query)


def without_weight(norm: Any) -> RMSNorm:
    exact = norm_of(norm)
    return RMSNorm(torch.ones_like(exact.weight), exact.eps)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_5_text"])
@pytest.mark.parametrize(
    ("part", "wrong"), [("HeadNorms", lambda *n: swapped(HeadNorms(*n))), ("norm_of", without_weight)]
)
def test_weights_of_norms_that_are_ignored_or_mistaken_are_found(
    model_type: str, part: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are 1 in a new model, or all 0."""
    config = tiny_config(model_type)
    assert self_check.check(config, backend_for(CPU), CPU, LoadOptions()).path == "packed"
    monkeypatch.setattr(f"worker.engine.model.fused_layers.{part}", wrong)
    verdict = self_check.check(config, backend_for(CPU), CPU, LoadOptions())
    assert verdict.path == "fallback" and verdict.difference is not None and verdict.difference > 0.02


def test_a_twin_that_hardly_depends_on_its_prompt_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve layers of BART with random weights give every row of a prompt nearly the same logits, right or wrong."""
    config = tiny_config("bart")
    config.decoder_layers = 12
    config.encoder_layers = 12
    monkeypatch.setattr("worker.engine.loading.twin.STACK_LAYERS", 12)
    monkeypatch.setattr("worker.engine.loading.self_check.SENSITIVITY", 4.0)  # narrow ones still depend on it a little
    verdict = self_check.check(config, backend_for(CPU), CPU, LoadOptions())
    assert verdict.path == "fallback" and "hardly depend on its prompt" in verdict.reason


def test_a_twin_that_is_rounded_by_its_neighbors_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts of Transformers multiply all rows of a step at once."""
    config = tiny_config("qwen3_moe")
    verdict = self_check.check(config, backend_for(CPU), CPU, LoadOptions())
    assert verdict.is_batch_invariant and "batch-invariant" not in verdict.sentence
    monkeypatch.setattr("worker.engine.cpu.backend.pack_experts", lambda *_: 0)
    verdict = self_check.check(config, backend_for(CPU), CPU, LoadOptions())
    assert verdict.path == "packed" and verdict.is_batch_invariant is False
    assert verdict.sentence.endswith("differ in their last bits from batch to batch")


def test_a_check_that_takes_too_long_takes_the_fallback_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tiny_config("qwen2")
    monkeypatch.setattr(self_check, "SECONDS", -1.0)
    verdict = checked_path(config.to_dict(), config, backend_for(CPU), CPU, LoadOptions())
    assert verdict.path == "fallback" and "more than" in verdict.reason
    assert stored_verdict(verdict_key(config.to_dict(), "cpu")) is None


def test_a_decoder_with_a_vocabulary_of_its_own_is_refused() -> None:
    """Marian's may be larger than the one that `vocab_size` counts, where its logits would be cut off."""
    model = tiny_model("marian")
    prepare_model("marian", model, None, CPU, LoadOptions(is_packed=False))
    model.config.decoder_vocab_size += 1
    with pytest.raises(ModelUnavailable, match="another vocabulary"):
        prepare_model("marian", model, None, CPU, LoadOptions(is_packed=False))


@pytest.mark.parametrize("window", [-1, 0, None])
def test_a_model_that_names_no_window_takes_any_length(window: int | None) -> None:
    """XLNet's configuration says -1."""
    assert context_window(SimpleNamespace(max_position_embeddings=window)) == UNBOUNDED_WINDOW
    assert context_window(SimpleNamespace(max_position_embeddings=window, n_ctx=7)) == 7


def test_a_verdict_is_kept_for_a_configuration_and_not_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = {"model_type": "qwen2", "hidden_size": 64, "transformers_version": "5.0"}
    verdict = Verdict("fallback", "because", 0.5)
    store_verdict(verdict_key(given, "cpu"), verdict)
    assert stored_verdict(verdict_key({**given, "transformers_version": "5.1"}, "cpu")) == verdict
    assert stored_verdict(verdict_key({**given, "hidden_size": 65}, "cpu")) is None
    assert stored_verdict(verdict_key(given, "cuda")) is None


def test_the_forks_of_a_fallback_reserve_whole_copies() -> None:
    """A sequence of `generate`'s has its own copy of the prompt, so a block is shared by nobody."""
    from worker.engine.config import EngineConfig
    from worker.engine.engine import Engine

    loaded = prepare_model("gptj", tiny_model("gptj"), None, CPU, LoadOptions(is_packed=False))
    own = loaded.model.own_cache
    assert own is not None and own.bytes_per_token >= 4 * 2 * 4 * 64  # keys and values of four layers in fp32
    engine = Engine(loaded, EngineConfig(max_num_seqs=4, kv_memory=0.01))
    assert not engine.scheduler.blocks.share_forks
    assert engine.kv_tokens <= 0.01 * 2**30 / own.bytes_per_token
