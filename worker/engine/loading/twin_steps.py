"""A twin in the engine's own steps: two prompts together or each alone, a long one in pieces or whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from torch import Tensor

from models.params import GenerationParams
from worker.engine.backend import Backend, LoadOptions
from worker.engine.config import EngineConfig, ModelLimits
from worker.engine.loading.deadline import Deadline
from worker.engine.loading.prepare import load_packed
from worker.engine.loading.twin import TOKEN_IDS, VOCAB
from worker.engine.request import Request
from worker.engine.scheduling.block_manager import BlockManager, Prefix
from worker.engine.scheduling.sequence import Sequence, SequenceGroup
from worker.engine.scheduling.state_manager import StateManager
from worker.engine.scheduling.step_plan import PrefillChunk, StepPlan

BLOCK_SIZE = 64
#: The long prompt, which is divided after a block, and the short one.
PROMPT_LENGTHS = (BLOCK_SIZE + 21, 7)
LONG, SHORT = range(2)
NUM_STEPS = 3
KV_MEMORY = 1.0  # GiB, of which the twin takes a few MiB


def prompt_tokens() -> list[list[int]]:
    """The prompts, each with the tokens that follow it."""
    rng = random.Random(0)
    return [[rng.randrange(len(TOKEN_IDS), VOCAB) for _ in range(length + NUM_STEPS)] for length in PROMPT_LENGTHS]


class TwinSteps:
    """A twin as the engine loads it: its own layers are of no use afterwards."""

    def __init__(
        self,
        twin: Any,
        backend: type[Backend],
        device: torch.device,
        options: LoadOptions,
        deadline: Deadline,
    ) -> None:
        vocab_size = twin.config.get_text_config().vocab_size
        with deadline.stopped():
            self._model = load_packed("twin", twin, backend, device, options)
        self._limits = ModelLimits("twin", PROMPT_LENGTHS[LONG] + BLOCK_SIZE, vocab_size)
        self._backend = backend
        self._deadline = deadline

    @torch.inference_mode()
    def logits(self, prompts: SequenceOf[int], *, in_pieces: bool) -> Tensor:
        """[steps, prompts, vocab] of some of the prompts, decoded together."""
        config = EngineConfig(block_size=BLOCK_SIZE, max_num_seqs=2, kv_memory=KV_MEMORY, use_graphs=False)
        with self._deadline.stopped():
            runner = self._backend(self._model, self._limits, config)
        states = StateManager(runner.num_states.total) if runner.num_states.total else None
        blocks = BlockManager(runner.num_blocks, runner.block_size, share_prefixes=False, states=states)
        rows: list[dict[int, Tensor]] = []
        for plan in _plans(blocks, prompts, BLOCK_SIZE if in_pieces and self._splits_prompts else 0):
            step = runner.launch(plan)
            logits = step.take_logits()
            each = [*step.on_device, *step.on_host]
            rows.append({sequence.request.id: logits[row].float() for row, sequence in each})
            self._deadline.check()
        return torch.stack([torch.stack([row[index] for index in prompts]) for row in rows if row])

    @property
    def _splits_prompts(self) -> bool:
        states = self._model.states
        return states.splits_prompts and BLOCK_SIZE % states.prompt_unit == 0


def _plans(blocks: BlockManager, prompts: SequenceOf[int], border: int) -> Iterator[StepPlan]:
    """The long prompt up to a border, its rest beside the short one, then tokens of both, as if scheduled."""
    groups = {index: _group(index, blocks) for index in prompts}
    chunks = [[(groups[LONG], 0, border)]] if border else []
    chunks.append([(group, border if index == LONG else 0, PROMPT_LENGTHS[index]) for index, group in groups.items()])
    for chunk in chunks:
        prefills = [PrefillChunk(group, start, end) for group, start, end in chunk]
        for prefill in prefills:
            blocks.append(prefill.sequence.table, prefill.end)
        yield StepPlan(prefills=prefills)
        for prefill in prefills:
            prefill.sequence.num_computed = prefill.end
    sequences = [group.sequences[0] for group in groups.values()]
    for step in range(NUM_STEPS, 0, -1):
        for index, sequence in zip(groups, sequences, strict=True):
            sequence.token_ids.append(prompt_tokens()[index][-step])
            blocks.append(sequence.table, sequence.num_tokens)
        yield StepPlan(decodes=sequences)
        for sequence in sequences:
            sequence.num_computed += 1


def _group(index: int, blocks: BlockManager) -> SequenceGroup:
    tokens = prompt_tokens()[index]
    request = Request(index, tuple(tokens[:-NUM_STEPS]), GenerationParams(max_new_tokens=NUM_STEPS + 1))
    sequence = Sequence(request, 0, NUM_STEPS + 1)
    allocated = blocks.allocate(Prefix(), blocks.blocks_for(len(tokens) + 1))
    assert allocated is not None
    sequence.table, _ = allocated
    sequence.batch_index = index + 1  # a GPU samples by its row, from 1 on
    return SequenceGroup(request, [sequence], arrived=0.0)
