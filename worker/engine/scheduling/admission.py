"""Requests that can never run, and what to change about them."""

from __future__ import annotations

from models.params import GenerationParams
from worker.engine.model_loader import LoadedModel
from worker.engine.request import DoesNotFit, EngineError, InvalidRequest, PromptTooLong
from worker.engine.scheduling.block_manager import KVBlocks
from worker.engine.scheduling.sequence import SequenceGroup


def refusal_by_model(group: SequenceGroup, loaded: LoadedModel) -> EngineError | None:
    """Where the model cannot take the prompt or what is asked of it."""
    request, window = group.request, loaded.context_window
    num_prompt = len(request.prompt_ids)
    if not num_prompt:
        return InvalidRequest("the prompt has no tokens; give at least one")
    if num_prompt >= window:
        return PromptTooLong(
            f"the prompt has {num_prompt} tokens, and the context window of {loaded.name} is {window}; "
            "at least one token must be left for the answer"
        )
    if (bad := _unknown_token(request.params, loaded.vocab_size)) is not None:
        return InvalidRequest(f"token id {bad} is not in the vocabulary of {loaded.vocab_size}")
    if request.params.stop and loaded.tokenizer is None:
        return InvalidRequest("stop strings need a tokenizer, and this model was loaded without one")
    return None


def refusal_by_room(
    group: SequenceGroup, max_num_seqs: int, blocks_needed: int, blocks: KVBlocks
) -> EngineError | None:
    """Where the batch or the cache is too small even for this request alone."""
    if group.num_rows > max_num_seqs:
        return DoesNotFit(
            f"the job needs {group.num_rows} sequences side by side, and the worker runs "
            f"{max_num_seqs}; ask for fewer, or start the worker with a larger --max-num-seqs"
        )
    if blocks_needed > blocks.num_usable:
        size = blocks.block_size
        return DoesNotFit(
            f"the job needs room for {blocks_needed * size} tokens in the KV cache, which holds "
            f"{blocks.num_usable * size}; lower max_new_tokens, or start the worker with more --kv-memory"
        )
    return None


def _unknown_token(params: GenerationParams, vocab_size: int) -> int | None:
    named = (*params.stop_token_ids, *(params.eos_token_ids or ()), *(params.logit_bias or ()))
    return next((token_id for token_id in named if token_id >= vocab_size), None)
