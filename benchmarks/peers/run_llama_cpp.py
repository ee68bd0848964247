"""llama.cpp with a unified KV cache: python run_llama_cpp.py MODEL REQUESTS DTYPE, DTYPE bf16, f32 or q8_0.

Needs llama-cpp-python, gguf, safetensors and torch. llama.cpp's library decodes batches that its caller composes, here
as its server does: a prompt is prefilled whole, beside the decoding sequences, as soon as a sequence id is free.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as llama
import numpy as np
import torch
from loop import requests_of, serve
from safetensors.torch import load_file

MAX_NUM_SEQS, BATCH_TOKENS = 64, 2048
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def converted(model: Path, dtype: str) -> Path:
    """The weights as GGUF; no vocabulary, because only ids go in and out."""
    target = model.with_name(f"{model.name}-{dtype}.gguf")
    if target.exists():
        return target
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    for name, tensor in load_file(model / "model.safetensors").items():
        values = tensor.to(torch.float32).numpy()
        if values.ndim == 1:
            writer.add_tensor(_name(name), values)
        else:
            writer.add_tensor(_name(name), gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _name(name: str) -> str:
    if name in ("model.embed_tokens.weight", "model.norm.weight"):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, *middle, last = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(middle)]}.{last}"


@dataclass
class Running:
    """A decoding sequence."""

    position: int
    num_left: int
    next_token: int = 0


class Decoder:
    """Continuous batching over llama.cpp's batch API."""

    def __init__(self, path: Path) -> None:
        llama.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(path).encode(), params)
        asked = llama.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max = 64 * 512, BATCH_TOKENS, 512, MAX_NUM_SEQS
        asked.n_threads = asked.n_threads_batch = 2
        asked.kv_unified = True
        self.context = llama.llama_init_from_model(self.model, asked)
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(BATCH_TOKENS, 0, 1)

    def decode(self, requests: list[dict[str, Any]]) -> int:
        """Decodes all requests greedily; returns the number of generated tokens."""
        waiting, free = deque(requests), list(range(MAX_NUM_SEQS))
        running: dict[int, Running] = {}
        num_tokens = 0
        while waiting or running:
            logits_rows = self._compose(waiting, free, running)
            if llama.llama_decode(self.context, self.batch):
                raise SystemExit("llama_decode failed")
            num_tokens += len(logits_rows)
            for seq_id, row in logits_rows:
                sequence = running[seq_id]
                logits = llama.llama_get_logits_ith(self.context, row)
                sequence.next_token = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
                sequence.num_left -= 1
                if not sequence.num_left:
                    llama.llama_memory_seq_rm(llama.llama_get_memory(self.context), seq_id, -1, -1)
                    free.append(seq_id)
                    del running[seq_id]
        return num_tokens

    def _compose(
        self, waiting: deque[dict[str, Any]], free: list[int], running: dict[int, Running]
    ) -> list[tuple[int, int]]:
        """Fills the batch with decoding sequences, then prompts; returns sequence ids with their rows of logits."""
        self.batch.n_tokens = 0
        logits_rows: list[tuple[int, int]] = []
        for seq_id, sequence in running.items():
            self._add(sequence.next_token, sequence.position, seq_id, is_last=True)
            logits_rows.append((seq_id, self.batch.n_tokens - 1))
            sequence.position += 1
        while waiting and free and self.batch.n_tokens + len(waiting[0]["prompt_ids"]) <= BATCH_TOKENS:
            request, seq_id = waiting.popleft(), free.pop()
            prompt = request["prompt_ids"]
            for position, token in enumerate(prompt):
                self._add(token, position, seq_id, is_last=position == len(prompt) - 1)
            running[seq_id] = Running(len(prompt), request["max_new_tokens"])
            logits_rows.append((seq_id, self.batch.n_tokens - 1))
        return logits_rows

    def _add(self, token: int, position: int, seq_id: int, *, is_last: bool) -> None:
        row, batch = self.batch.n_tokens, self.batch
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
        batch.seq_id[row][0], batch.logits[row] = seq_id, is_last
        batch.n_tokens += 1


def _ignore_log(level: int, text: bytes, data: Any) -> None:
    """llama.cpp logs every buffer it allocates."""


_LOG_CALLBACK = llama.llama_log_callback(_ignore_log)  # ctypes needs it alive


def main() -> None:
    decoder = Decoder(converted(Path(sys.argv[1]), sys.argv[3]))
    requests = requests_of(sys.argv[2])
    serve(lambda: decoder.decode(requests))


if __name__ == "__main__":
    main()
