"""Requests that can never run, and how to change them."""

from __future__ import annotations

from models.params import GenerationParams
from worker.engine.config import ModelLimits
from worker.engine.request import CapacityExceeded, EngineError, InvalidRequest, PromptTooLong, Request
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.sequence import SequenceGroup


def model_error(request: Request, limits: ModelLimits) -> EngineError | None:
    """The error of a request whose prompt or parameters the model does not take, else None."""
    num_prompt = len(request.prompt_ids)
    if not num_prompt:
        return InvalidRequest("the prompt has no tokens; give at least one")
    if num_prompt >= limits.context_window:
        return PromptTooLong(
            f"the prompt has {num_prompt} tokens, and the context window of {limits.name} is {limits.context_window}; "
            "at least one token must be left for the answer"
        )
    if (bad := _unknown_token(request.params, limits.vocab_size)) is not None:
        return InvalidRequest(f"token id {bad} is not in the vocabulary of {limits.vocab_size}")
    if request.params.stop and not limits.has_tokenizer:
        return InvalidRequest("stop strings need a tokenizer, and this model was loaded without one")
    return None


def capacity_error(
    group: SequenceGroup, max_num_seqs: int, num_blocks_needed: int, blocks: BlockManager
) -> EngineError | None:
    """The error of a group for which the batch or the KV cache is too small even with nothing beside it, else None."""
    if group.max_sequences > max_num_seqs:
        return CapacityExceeded(
            f"the job needs {group.max_sequences} sequences side by side, and the worker runs "
            f"{max_num_seqs}; ask for fewer, or start the worker with a larger --max-num-seqs"
        )
    if num_blocks_needed > blocks.num_usable:
        size = blocks.block_size
        return CapacityExceeded(
            f"the job needs room for {num_blocks_needed * size} tokens in the KV cache, which holds "
            f"{blocks.num_usable * size}; lower max_new_tokens, or start the worker with more --kv-memory"
        )
    return None


def _unknown_token(params: GenerationParams, vocab_size: int) -> int | None:
    named = (*params.stop_token_ids, *(params.eos_token_ids or ()), *(params.logit_bias or ()))
    return next((token_id for token_id in named if token_id >= vocab_size), None)
