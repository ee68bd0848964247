"""Compares our steps with a model's own forward passes, on a small twin of it.

Two prompts: the long one prefilled in two chunks, the short one packed beside its second, then both decode together.
A right path differs by 3e-4 of a row's standard deviation at most, a wrong one by more than a third of it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from models.checkpoint.paths.verdict import Verdict
from models.checkpoint.small_files import one_line
from models.params import GenerationParams
from worker.engine.backend import Backend, LoadOptions
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.fallback.own_cache import OwnCacheDecoder
from worker.engine.loading.prepare import load_packed
from worker.engine.loading.twin import TOKEN_IDS, VOCAB, twins
from worker.engine.request import Request
from worker.engine.scheduling.block_manager import BlockManager, Prefix
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.state_manager import StateManager
from worker.engine.scheduling.step_plan import PrefillChunk, StepPlan

logger = logging.getLogger(__name__)

#: The largest difference of a right path, in standard deviations of a row's logits.
TOLERANCE = 1e-3
SECONDS = 20.0
BLOCK_SIZE = 64
PROMPT_LENGTHS = (BLOCK_SIZE + 21, 7)
NUM_STEPS = 3
KV_MEMORY = 1.0  # GiB, of which the twin takes a few MiB


class TookTooLong(Exception):
    """The check's time is over."""


def check(config: Any, backend: type[Backend], device: torch.device, options: LoadOptions) -> Verdict:
    """The path that computes a configuration's language model. Raises `TookTooLong`."""
    backend.prepare_process(torch.float32, options)  # builds the kernels, which is not the check's time
    deadline = monotonic() + SECONDS
    found = _smallest_twin(config, device, deadline)
    if isinstance(found, str):
        return Verdict("fallback", f"no small twin of its configuration runs ({found})")
    make_twin, twin, alone = found
    difference, problem = _packed_difference(twin, alone, backend, device, options, deadline)
    if problem is None:
        return Verdict("packed", "a small twin computes what its own forward pass does", difference)
    try:
        interleaved = _own_logits(make_twin(), deadline, interleaved=True)
    except TookTooLong:
        raise
    except Exception as error:
        return Verdict("refused", f"{problem}, and its own cache cannot be copied ({_cause(error)})", difference)
    if not _spreads(interleaved, alone) <= TOLERANCE:  # NaN is no small difference
        return Verdict("refused", f"{problem}, and it keeps its state in itself, not in a cache", difference)
    return Verdict("fallback", problem, difference)


def _smallest_twin(config: Any, device: torch.device, deadline: float) -> tuple[Callable[[], Any], Any, Tensor] | str:
    """The maker of the smallest twin that runs, the twin, and its own logits; or the reason that there is none."""
    problem = ""
    for make_twin in twins(config, device):
        try:
            twin = make_twin()
            return make_twin, twin, _own_logits(twin, deadline, interleaved=False)
        except TookTooLong:
            raise
        except Exception as error:  # Transformers' classes raise types of their own
            problem = problem or _cause(error)
            _check_time(deadline)
    return problem


def _packed_difference(
    twin: Any, alone: Tensor, backend: type[Backend], device: torch.device, options: LoadOptions, deadline: float
) -> tuple[float | None, str | None]:
    """The difference of our steps from the twin's own, and the sentence about it where it is large."""
    try:
        difference = _spreads(_packed_logits(twin, backend, device, options, deadline), alone)
    except TookTooLong:
        raise
    except Exception as error:  # of a forward pass that our arguments or modules do not suit
        logger.debug("the packed path fails", exc_info=True)
        return None, f"rows of several sequences cannot be packed ({_cause(error)})"
    if difference <= TOLERANCE:
        return difference, None
    return difference, f"rows of several sequences, packed, differ by {difference:.2g} standard deviations"


@torch.inference_mode()
def _own_logits(twin: Any, deadline: float, *, interleaved: bool) -> Tensor:
    """[steps, prompts, vocab] by the model's own cache: each prompt by itself, or the two in turns, from copies."""
    decoder = OwnCacheDecoder(twin)
    tokens = _tokens()
    if not interleaved:
        return torch.stack([_decoded_alone(decoder, each, deadline) for each in tokens], dim=1)
    states, logits = zip(*(decoder.prefill(each[:-NUM_STEPS]) for each in tokens), strict=True)
    rows = [torch.stack(logits)]
    for step in range(NUM_STEPS, 0, -1):
        copies = [state.fork() for state in states]
        for state, each in zip(states, tokens, strict=True):
            decoder.decode(state, each[-step])
        states, logits = zip(
            *(decoder.decode(state, each[-step]) for state, each in zip(copies, tokens, strict=True)), strict=True
        )
        rows.append(torch.stack(logits))
        _check_time(deadline)
    return torch.stack(rows).float()


def _decoded_alone(decoder: OwnCacheDecoder, tokens: SequenceOf[int], deadline: float) -> Tensor:
    state, logits = decoder.prefill(tokens[:-NUM_STEPS])
    rows = [logits]
    for token_id in tokens[-NUM_STEPS:]:
        state, logits = decoder.decode(state, token_id)
        rows.append(logits)
        _check_time(deadline)
    return torch.stack(rows).float()


@torch.inference_mode()
def _packed_logits(
    twin: Any, backend: type[Backend], device: torch.device, options: LoadOptions, deadline: float
) -> Tensor:
    """[steps, prompts, vocab] by our steps."""
    vocab_size = twin.config.get_text_config().vocab_size
    limits = ModelLimits("twin", PROMPT_LENGTHS[0] + BLOCK_SIZE, vocab_size)
    model = load_packed("twin", twin, backend, device, options)
    config = EngineConfig(block_size=BLOCK_SIZE, max_num_seqs=2, kv_memory=KV_MEMORY, use_graphs=False)
    runner = backend(model, limits, config)
    states = StateManager(runner.num_states) if runner.num_states else None
    blocks = BlockManager(runner.num_blocks, runner.block_size, share_prefixes=False, states=states)
    rows: list[dict[int, Tensor]] = []
    for plan in _plans(
        blocks, splits_prompts=model.states.splits_prompts and BLOCK_SIZE % model.states.prompt_unit == 0
    ):
        step = runner.launch(plan)
        logits = step.take_logits()
        rows.append({sequence.request.id: logits[row].float() for row, sequence in [*step.on_device, *step.on_host]})
        _check_time(deadline)
    return torch.stack([torch.stack([row[0], row[1]]) for row in rows if row])


def _plans(blocks: BlockManager, *, splits_prompts: bool) -> Iterator[StepPlan]:
    """Two chunks of the long prompt, the second beside the short one, then tokens of both, as if scheduled."""
    long, short = (_group(index, tokens, blocks) for index, tokens in enumerate(_tokens()))
    border = BLOCK_SIZE if splits_prompts else 0
    chunks = ([(long, 0, border)], [(long, border, PROMPT_LENGTHS[0]), (short, 0, PROMPT_LENGTHS[1])])
    for chunk in chunks if splits_prompts else chunks[1:]:
        prefills = [PrefillChunk(group, start, end) for group, start, end in chunk]
        for prefill in prefills:
            blocks.append(prefill.sequence.table, prefill.end)
        yield StepPlan(prefills=prefills)
        for prefill in prefills:
            prefill.sequence.num_computed = prefill.end
    sequences = [long.sequences[0], short.sequences[0]]
    for step in range(NUM_STEPS, 0, -1):
        for sequence, tokens in zip(sequences, _tokens(), strict=True):
            sequence.token_ids.append(tokens[-step])
            blocks.append(sequence.table, sequence.num_tokens)
        yield StepPlan(decodes=sequences)
        for sequence in sequences:
            sequence.num_computed += 1


def _group(index: int, tokens: SequenceOf[int], blocks: BlockManager) -> SequenceGroup:
    request = Request(index, tuple(tokens[:-NUM_STEPS]), GenerationParams(max_new_tokens=NUM_STEPS + 1))
    sequence = Sequence(request, 0, NUM_STEPS + 1)
    allocated = blocks.allocate(Prefix(), blocks.blocks_for(len(tokens) + 1))
    assert allocated is not None
    sequence.table, _ = allocated
    return SequenceGroup(request, [sequence], arrived=0.0)


def _tokens() -> list[list[int]]:
    """The prompts, each with the tokens that follow it."""
    rng = random.Random(0)
    return [[rng.randrange(len(TOKEN_IDS), VOCAB) for _ in range(length + NUM_STEPS)] for length in PROMPT_LENGTHS]


def _spreads(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit, in standard deviations of its row; NaN where one is NaN."""
    differences = (found - expected).abs().amax(-1) / expected.std(-1)
    return float(differences.max())


def _check_time(deadline: float) -> None:
    if monotonic() > deadline:
        raise TookTooLong


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"
