"""Requests that can never run, and how to change them."""

from __future__ import annotations

from collections.abc import Callable

from models.params import GenerationParams, infinite_bias
from worker.engine.config import ModelLimits
from worker.engine.request import CapacityExceeded, EngineError, InvalidRequest, PromptTooLong, Request
from worker.engine.sampling_row import bias_of
from worker.engine.scheduling.block_manager import BlockManager
from worker.engine.scheduling.sequence import SequenceGroup

#: Tokens that an error names.
MAX_NAMED = 5


def check_request(request: Request, limits: ModelLimits, token_text: Callable[[int], str] | None = None) -> None:
    """Raises `EngineError` for a request whose prompt or parameters the model does not take.

    `token_text` gives the text of a token, where the model has a tokenizer.
    """
    num_prompt = len(request.prompt_ids)
    if not num_prompt:
        raise InvalidRequest("the prompt has no tokens; give at least one")
    if num_prompt >= limits.context_window:
        raise PromptTooLong(
            f"the prompt has {num_prompt} tokens, and the context window of {limits.name} is {limits.context_window}; "
            "at least one token must be left for the answer"
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= limits.vocab_size:
        raise InvalidRequest(_unknown_prompt_tokens(request.prompt_ids, limits, token_text))
    if (bad := _unknown_token(request.params, limits.vocab_size)) is not None:
        raise InvalidRequest(f"token id {bad} is not in the vocabulary of {limits.vocab_size}")
    if (infinite := infinite_bias(bias_of(request.params))) is not None:
        raise InvalidRequest(
            f"the bias {infinite[1]:g} of token {infinite[0]} is beyond fp32; 100 all but picks a token"
        )
    if request.params.stop and not limits.has_tokenizer:
        raise InvalidRequest("stop strings need a tokenizer, and this model was loaded without one")


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


def _unknown_prompt_tokens(
    prompt_ids: tuple[int, ...], limits: ModelLimits, token_text: Callable[[int], str] | None
) -> str:
    """The sentence about prompt ids that the tokenizer gave and the embedding does not have."""
    unknown = list(dict.fromkeys(each for each in prompt_ids if not 0 <= each < limits.vocab_size))
    named = [f"{each}" if token_text is None else f"{each} ({token_text(each)!r})" for each in unknown[:MAX_NAMED]]
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    ids = "token id" if len(unknown) == 1 else "token ids"
    return (
        f"the prompt has {ids} {', '.join(named)}{more}, and the vocabulary of {limits.name} has only "
        f"{limits.vocab_size}; take them out of the prompt, or correct the model's tokenizer"
    )


def _unknown_token(params: GenerationParams, vocab_size: int) -> int | None:
    by_job = (*params.stop_token_ids, *(params.eos_token_ids or ()), *(params.logit_bias or ()))
    by_model = () if params.model_defaults is None else params.model_defaults.required_ids
    return next((token_id for token_id in (*by_job, *by_model) if token_id >= vocab_size), None)
