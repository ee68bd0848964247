"""Small model folders that load, and the tools to damage them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.support.processes import ROOT

TOY_MODEL = ROOT / "examples" / "tiny" / "model"
SMALL_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 988097824\n"


def make_small_model(folder: Path, *, shard_size: str = "5GB") -> Path:
    """A model of two layers with the toy's tokenizer, in files of a few kilobytes."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=shard_size)
    for name in SMALL_FILES:
        shutil.copy(TOY_MODEL / name, folder)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    """Sets fields of a JSON file; `...` removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def edit_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the header of a safetensors file; its tensors stay."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
