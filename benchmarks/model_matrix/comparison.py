"""One tiny model's mixed batch beside `generate`, one prompt at a time in fp32, and beside itself alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch

from benchmarks.model_matrix.invariance import DTYPES, differing
from benchmarks.model_matrix.tiny import tiny_model
from models.checkpoint.paths.verdict import Verdict
from models.params import GenerationParams
from worker.engine.backend import LoadOptions
from worker.engine.config import EngineConfig
from worker.engine.device_selection import backend_for
from worker.engine.engine import Engine
from worker.engine.loading.deadline import TookTooLong
from worker.engine.loading.self_check import check
from worker.engine.loading.twin import TOKEN_IDS, VOCAB
from worker.engine.model_loader import LoadedModel, prepare_model
from worker.engine.request import Request

CPU = torch.device("cpu")
EOS = 3
MAX_NEW_TOKENS = 16
GREEDY_LENGTHS = (1, 2, 15, 33, 64, 65, 90, 130)
NUM_BEAM_SEARCHES, NUM_SAMPLED, NUM_CANCELLED = 2, 2, 2
BEAMS, SAMPLES = 4, 3
#: Fewer than there are sequences, so that places are taken again; chunks cut the longest prompts.
CONFIG = EngineConfig(max_num_seqs=12, prefill_tokens=64, kv_memory=0.25, block_size=16)
CANCELLED_AFTER_STEPS = 8

#: Of the self check: so many that the outcome does not depend on what else the machine does.
CHECK_SECONDS = 300.0


@dataclass(frozen=True)
class Row:
    """A type's outcome. Counts are (equal, compared), none where Transformers itself cannot.

    `fp32` and `bf16` are stored numbers that differ from batch to batch, and how many were compared.
    """

    model_type: str
    path: str  # packed, fallback, refused, or `not built`
    reason: str
    greedy: tuple[int, int] = (0, 0)
    beams: tuple[int, int] = (0, 0)
    samples: tuple[int, int] = (0, 0)
    fp32: tuple[int, int] = (0, 0)
    bf16: tuple[int, int] = (0, 0)
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return all(equal == count for equal, count in (self.greedy, self.beams, self.samples))


def compared(model_type: str, *, with_invariance: bool = False) -> Row:
    """Decodes a mixed batch with the type's twin on the path that its self check gives."""
    started = monotonic()
    try:
        reference = tiny_model(model_type)
        _generated(reference, _requests(VOCAB)[1])
    except Exception as error:  # of a configuration whose defaults need more than small sizes
        return Row(model_type, "not built", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    try:
        verdict = check(reference.config, backend_for(CPU), CPU, LoadOptions(), seconds=CHECK_SECONDS)
    except TookTooLong:
        verdict = Verdict("fallback", "its self check takes too long")
    if verdict.path == "refused":
        return Row(model_type, "refused", verdict.reason, seconds=monotonic() - started)
    options = LoadOptions(is_packed=verdict.path == "packed")
    loaded = prepare_model(model_type, copy.deepcopy(reference), None, CPU, options)
    counts = _compared_answers(reference, loaded)
    is_tried = with_invariance and verdict.path == "packed"
    numbers = {dtype: differing(model_type, dtype) for dtype in DTYPES} if is_tried else {}
    return Row(model_type, verdict.path, verdict.reason, *counts, **numbers, seconds=monotonic() - started)


Counts = tuple[int, int]


def _compared_answers(reference: Any, loaded: LoadedModel) -> tuple[Counts, Counts, Counts]:
    requests = _requests(loaded.limits.vocab_size)
    mixed = _answers(loaded, requests, cancelled=[request.id for request in requests[-NUM_CANCELLED:]])
    greedy: list[bool] = []
    beams: list[bool] = []
    samples: list[bool] = []
    for request in requests[:-NUM_CANCELLED]:
        if request.params.num_sequences > 1 and request.params.strategy.value == "sample":
            samples.append(mixed[request.id] == _answers(loaded, [request])[request.id])
            continue
        found = mixed[request.id]
        if request.params.num_beams == 1:
            greedy.append(found == _generated(reference, request))
        elif (is_right := _are_beams(reference, request, found)) is not None:
            beams.append(is_right)
    return (sum(greedy), len(greedy)), (sum(beams), len(beams)), (sum(samples), len(samples))


def _requests(vocab_size: int) -> list[Request]:
    """Greedy prompts of several lengths, beams, samples, and some that are cancelled; in a fixed order."""
    rng = random.Random(2)
    kinds: list[dict[str, Any]] = [{}] * len(GREEDY_LENGTHS)
    kinds += [{"strategy": "beam", "num_beams": BEAMS}] * NUM_BEAM_SEARCHES
    kinds += [{"strategy": "sample", "n": SAMPLES}] * NUM_SAMPLED
    kinds += [{}] * NUM_CANCELLED
    lengths = [*GREEDY_LENGTHS, *(rng.randint(5, 80) for _ in kinds[len(GREEDY_LENGTHS) :])]
    return [
        Request(
            index,
            tuple(rng.randrange(len(TOKEN_IDS), vocab_size) for _ in range(length)),
            GenerationParams.model_validate(
                {**kind, "max_new_tokens": MAX_NEW_TOKENS, "eos_token_ids": [EOS], "seed": index}
            ),
        )
        for index, (kind, length) in enumerate(zip(kinds, lengths, strict=True))
    ]


def _answers(
    loaded: LoadedModel, requests: Sequence[Request], cancelled: Sequence[int] = ()
) -> dict[int, list[list[int]]]:
    """The token ids of each request's sequences, of all that were not cancelled."""
    engine = Engine(loaded, CONFIG)
    for request in [*requests[::2], *requests[1::2]]:
        engine.submit(request)
    found, steps = {}, 0
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(f"{output.request_id}: {output.error}")
            found[output.request_id] = [list(done.token_ids) for done in output.completions]
        steps += 1
        if steps == CANCELLED_AFTER_STEPS:
            for request_id in cancelled:
                engine.cancel(request_id)
    return found


def _are_beams(reference: Any, request: Request, found: list[list[int]]) -> bool | None:
    """Whether these are the beams of `generate`; None where it has none.

    Some caches keep states that Transformers does not move when beams change places (MiniMax, RWKV): without a cache
    there is nothing to move.
    """
    answers = []
    for use_cache in (True, False):
        try:
            answers.append(_generated(reference, request, use_cache=use_cache))
        except Exception:  # of a cache that cannot be reordered, or a model that needs one
            continue
        if answers[-1] == found:
            return True
    return False if answers else None


@torch.inference_mode()
def _generated(reference: Any, request: Request, *, use_cache: bool = True) -> list[list[int]]:
    """Transformers' own answer, without the token that some configurations end every answer with."""
    ids = torch.tensor([list(request.prompt_ids)])
    num_beams = request.params.num_beams
    options = {"num_beams": num_beams, "early_stopping": True} if num_beams > 1 else {}
    if hasattr(reference.generation_config, "forced_eos_token_id"):
        reference.generation_config.forced_eos_token_id = None
    output = reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=[EOS], pad_token_id=0, use_cache=use_cache, **options,
    )  # fmt: skip
    row = output[0, ids.shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row]
