"""Compares our steps with a model's own forward passes, on a small twin of it.

Two prompts: the long one prefilled in two chunks, the short one packed beside its second, then both decode together.
A right path differs by 3e-4 of a row's standard deviation at most, a wrong one by more than a third of it, where the
twin's answers depend on the order of its prompt's tokens; one whose answers do not is of no use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models.checkpoint.paths.verdict import Verdict
from models.checkpoint.small_files import one_line
from worker.engine.backend import Backend, LoadOptions
from worker.engine.fallback.own_cache import OwnCacheDecoder
from worker.engine.loading.deadline import Deadline, TookTooLong
from worker.engine.loading.twin import twins
from worker.engine.loading.twin_steps import LONG, NUM_STEPS, SHORT, TwinSteps, prompt_tokens

logger = logging.getLogger(__name__)

#: The largest difference of a right path, in standard deviations of a row's logits.
TOLERANCE = 1e-3

#: The least that other tokens must change a twin's logits, so that a wrong path shows.
SENSITIVITY = 20 * TOLERANCE
SECONDS = 20.0


class _Insensitive(Exception):
    """A twin whose answers hardly depend on its prompt."""


@dataclass(frozen=True)
class _Twin:
    make: Callable[[], Any]
    model: Any
    alone: Tensor  # its own logits [steps, prompts, vocab]


def check(
    config: Any, backend: type[Backend], device: torch.device, options: LoadOptions, *, seconds: float | None = None
) -> Verdict:
    """The path that computes a configuration's language model. Raises `TookTooLong`, by default after `SECONDS`."""
    backend.prepare_process(torch.float32, options)  # builds the kernels, which is not the check's time
    deadline = Deadline(SECONDS if seconds is None else seconds)
    found = _smallest_twin(config, device, deadline)
    if isinstance(found, str):
        return Verdict("fallback", f"no small twin of its configuration is of use ({found})")
    verdict, problem = _packed_verdict(found, backend, device, options, deadline)
    if problem is None:
        return verdict
    try:
        interleaved = _own_logits(found.make(), deadline, interleaved=True)
    except TookTooLong:
        raise
    except Exception as error:
        return replace(
            verdict, path="refused", reason=f"{problem}, and its own cache cannot be copied ({_cause(error)})"
        )
    if not _spreads(interleaved, found.alone) <= TOLERANCE:  # NaN is no small difference
        return replace(verdict, path="refused", reason=f"{problem}, and it keeps its state in itself, not in a cache")
    return replace(verdict, path="fallback", reason=problem)


def _smallest_twin(config: Any, device: torch.device, deadline: Deadline) -> _Twin | str:
    """The smallest twin that runs and tells right from wrong; or the reason that there is none."""
    problem = ""
    for make_twin in twins(config, device):
        try:
            twin = make_twin()
            alone = _own_logits(twin, deadline, interleaved=False)
            _check_sensitivity(twin, alone, deadline)
            return _Twin(make_twin, twin, alone)
        except TookTooLong:
            raise
        except _Insensitive as error:
            problem = problem or str(error)
        except Exception as error:  # Transformers' classes raise types of their own
            problem = problem or _cause(error)
        deadline.check()
    return problem


def _packed_verdict(
    twin: _Twin, backend: type[Backend], device: torch.device, options: LoadOptions, deadline: Deadline
) -> tuple[Verdict, str | None]:
    """The verdict on our steps, and the sentence about them where they differ from the twin's own."""
    verdict = Verdict("packed", "a small twin computes what its own forward pass does")
    try:
        steps = TwinSteps(twin.model, backend, device, options, deadline)
        together = steps.logits((LONG, SHORT), in_pieces=True)
        difference = _spreads(together, twin.alone)
        if not difference <= TOLERANCE:
            verdict = replace(verdict, difference=difference)
            return verdict, f"rows of several sequences, packed, differ by {difference:.2g} standard deviations"
        is_invariant = _is_batch_invariant(steps, together) if device.type == "cpu" else None
    except TookTooLong:
        raise
    except Exception as error:  # of a forward pass that our arguments or modules do not suit
        logger.debug("the packed path fails", exc_info=True)
        return verdict, f"rows of several sequences cannot be packed ({_cause(error)})"
    return replace(verdict, difference=difference, is_batch_invariant=is_invariant), None


def _is_batch_invariant(steps: TwinSteps, together: Tensor) -> bool:
    """Whether each prompt alone, in one piece, has the same bits."""
    alone = [steps.logits((prompt,), in_pieces=False)[:, 0] for prompt in (LONG, SHORT)]
    return torch.equal(torch.stack(alone, dim=1), together)


@torch.inference_mode()
def _check_sensitivity(twin: Any, alone: Tensor, deadline: Deadline) -> None:
    """Raises `_Insensitive` where another token, or two in another order, change less than a wrong path would have to.

    A deep stack of random layers can make every row the average of its prompt.
    """
    tokens = list(prompt_tokens()[SHORT])
    tokens[1], tokens[2] = tokens[2], tokens[1]
    order = _spreads(_decoded_alone(OwnCacheDecoder(twin), tokens, deadline), alone[:, SHORT])
    newest = float(_differences(alone[1:], alone[:-1]).min())
    if not min(order, newest) >= SENSITIVITY:
        raise _Insensitive(f"its answers hardly depend on its prompt: by {min(order, newest):.2g} standard deviations")


@torch.inference_mode()
def _own_logits(twin: Any, deadline: Deadline, *, interleaved: bool) -> Tensor:
    """[steps, prompts, vocab] by the model's own cache: each prompt by itself, or the two in turns, from copies."""
    decoder = OwnCacheDecoder(twin)
    tokens = prompt_tokens()
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
        deadline.check()
    return torch.stack(rows).float()


def _decoded_alone(decoder: OwnCacheDecoder, tokens: SequenceOf[int], deadline: Deadline) -> Tensor:
    state, logits = decoder.prefill(tokens[:-NUM_STEPS])
    rows = [logits]
    for token_id in tokens[-NUM_STEPS:]:
        state, logits = decoder.decode(state, token_id)
        rows.append(logits)
        deadline.check()
    return torch.stack(rows).float()


def _spreads(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a logit, in standard deviations of its row; NaN where one is NaN."""
    return float(_differences(found, expected).max())


def _differences(found: Tensor, expected: Tensor) -> Tensor:
    """The largest difference of each row's logits, in standard deviations of the row."""
    return (found - expected).abs().amax(-1) / expected.std(-1)


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)[:200]}"
