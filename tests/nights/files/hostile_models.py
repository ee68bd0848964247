"""Model folders of strangers, and the program that tries them: `python -m tests.nights.files.hostile_models FOLDER…`.

The program runs `producer run --dry-run` on each folder in one process, with its memory bounded, and prints a line of
JSON for each: exit code, messages, seconds, expansion of its memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

TOY_MODEL = ROOT / "examples" / "tiny" / "model"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MEMORY_BYTES = 3 * 2**30  # of addresses; the interpreter with its libraries takes a fifth

Attack = Callable[[Path], object]


def weights_header(header: dict[str, Any] | bytes, *, size: int = 0, length: int | None = None) -> bytes:
    """The beginning of a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * size


def tensor(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def put(name: str, content: bytes | str | dict[str, Any]) -> Attack:
    """Replaces a file."""
    if isinstance(content, dict):
        content = json.dumps(content)
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return do


def changed(name: str, **values: Any) -> Attack:
    """Sets fields of a JSON file."""

    def do(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        put(name, content | values)(folder)

    return do


def sparse(name: str, begin: bytes = b"", size: int = 2**40) -> Attack:
    """A file of a terabyte that takes no room."""

    def do(folder: Path) -> None:
        put(name, begin)(folder)
        os.truncate(folder / name, size)

    return do


def link(name: str, target: str) -> Attack:
    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return do


def pipe(name: str) -> Attack:
    def do(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return do


def both(*attacks: Attack) -> Attack:
    return lambda folder: [attack(folder) for attack in attacks]


def listening(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.json")
    finally:
        os.chdir(here)


def index(weight_map: dict[str, str]) -> Attack:
    """An index in place of the one file of weights, which stays beside it under another name."""

    def do(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "shard.safetensors")
        put(INDEX, {"metadata": {}, "weight_map": weight_map})(folder)

    return do


def pickled(folder: Path) -> None:
    """A shard that is a pickle and would run a program."""
    index({"a": "shard.safetensors", "b": "pytorch_model.bin"})(folder)
    put("pytorch_model.bin", b"cposix\nsystem\n(S'touch executed'\ntR.")(folder)


def link_to_pickle(folder: Path) -> None:
    """The same behind a name that ends rightly."""
    pickled(folder)
    put(INDEX, {"weight_map": {"b": "b.safetensors"}})(folder)
    link("b.safetensors", "pytorch_model.bin")(folder)


def outside(folder: Path) -> Path:
    """A file beside the folder."""
    path = folder.parent / f"outside-{folder.name}"
    path.write_text('{"secret": "of another user"}')
    return path


def normalizer(*rules: dict[str, Any]) -> Attack:
    return changed("tokenizer.json", normalizer={"type": "Sequence", "normalizers": list(rules)})


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def special(token: str) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {}}


TEMPLATES = "additional_chat_templates"
NESTED = "[" * 900 + "]" * 900

#: Attack -> (its making, a part of the sentence that refuses it).
HOSTILE: dict[str, tuple[Attack, str]] = {
    # files that are none
    "config-pipe": (pipe("config.json"), "config.json is not a file but a pipe"),
    "weights-pipe": (pipe(WEIGHTS), f"{WEIGHTS} is not a file but a pipe"),
    "tokenizer-pipe": (pipe("tokenizer.json"), "tokenizer.json is not a file but a pipe"),
    "template-pipe": (pipe("chat_template.jinja"), "chat_template.jinja is not a file but a pipe"),
    "socket": (listening, "socket.json is not a file but a pipe, a socket or a device"),
    "config-device": (link("config.json", "/dev/zero"), "is a link out of the model's folder, to /dev/zero"),
    "weights-device": (link(WEIGHTS, "/dev/urandom"), "is a link out of the model's folder"),
    "link-to-itself": (link("config.json", "config.json"), "cannot be read: Too many levels of symbolic links"),
    "links-in-a-circle": (
        both(link(WEIGHTS, "b"), link("b", WEIGHTS)), "Too many levels of symbolic links",
    ),
    "weights-are-a-folder": (
        both(lambda folder: (folder / WEIGHTS).unlink(), lambda folder: (folder / WEIGHTS).mkdir()),
        f"{WEIGHTS} is a folder",
    ),
    # files of this machine
    "template-link": (
        lambda folder: link("chat_template.jinja", str(outside(folder)))(folder), "is a link out of the model's folder",
    ),
    "tool-template-link": (
        both(
            lambda folder: (folder / TEMPLATES).mkdir(),
            lambda folder: link(f"{TEMPLATES}/tool_use.jinja", str(outside(folder)))(folder),
        ),
        "tool_use.jinja is a link out of the model's folder",
    ),
    "relative-link": (
        lambda folder: link("tokenizer_config.json", f"../{outside(folder).name}")(folder), "is a link out of",
    ),
    "weights-link": (lambda folder: link(WEIGHTS, str(TOY_MODEL / WEIGHTS))(folder), "is a link out of"),
    "folder-of-shards-link": (
        both(index({"a": "deep/model.safetensors"}), link("deep", str(TOY_MODEL))),
        "deep is a link out of the model's folder",
    ),
    "index-parent": (index({"a": "../model.safetensors"}), "'../model.safetensors' outside of its folder"),
    "index-hidden-parent": (index({"a": "x/../../m.safetensors"}), "outside of its folder, which is not read"),
    "index-absolute": (index({"a": "/etc/passwd"}), "the file '/etc/passwd' outside of its folder"),
    "index-nul": (index({"a": "a\0.safetensors"}), "outside of its folder, which is not read"),
    "named-weights": (changed("config.json", transformers_weights="/etc/passwd"), "outside of its folder"),
    # code
    "pickle": (pickled, "names the file 'pytorch_model.bin', which is not safetensors"),
    "pickle-by-config": (
        both(pickled, changed("config.json", transformers_weights="pytorch_model.bin")),
        "names the file 'pytorch_model.bin', which is not safetensors",
    ),
    "pickle-by-link": (link_to_pickle, "b.safetensors is damaged"),
    "own-code": (
        changed("config.json", model_type="own", auto_map={"AutoConfig": "evil.Config"}), "which is never run",
    ),
    # sizes
    "config-terabyte": (sparse("config.json", b"{"), "1,099,511,627,776 bytes, and a file of its kind at most"),
    "tokenizer-terabyte": (sparse("tokenizer.json", b"{"), "1,099,511,627,776 bytes"),
    "sentencepiece-terabyte": (sparse("tokenizer.model", b"\n"), "1,099,511,627,776 bytes"),
    "template-terabyte": (sparse("chat_template.jinja", b"{"), "1,099,511,627,776 bytes"),
    "weights-terabyte": (sparse(WEIGHTS, weights_header({}, length=2**30)), "does not begin with the length"),
    "weights-of-nothing": (sparse(WEIGHTS, struct.pack("<Q", 90_000_000)), "header is not JSON"),
    "header-of-gigabytes": (put(WEIGHTS, weights_header(b"{}", length=2**33)), "does not begin with the length"),
    "weights-longer": (sparse(WEIGHTS, weights_header({"a": tensor([1], 0, 4)})), "bytes more than its header names"),
    # JSON that unfolds in memory
    "config-lists": (put("config.json", "[" + "[]," * 6_000_000 + "[]]"), "more than 8,000,000 values"),
    "tokenizer-lists": (put("tokenizer.json", "[" + "[]," * 6_000_000 + "[]]"), "more than 8,000,000 values"),
    "header-lists": (put(WEIGHTS, weights_header(b"[" + b"[]," * 6_000_000 + b"[]]")), "more than 8,000,000 values"),
    "config-nested": (put("config.json", f'{{"a": {NESTED}}}'), "nested more than 100 deep"),
    "config-nested-more": (put("config.json", "[" * 1_000_000), "config.json is not JSON"),
    "generation-nested": (put("generation_config.json", f'{{"a": {NESTED}}}'), "nested more than 100 deep"),
    "huge-number": (put("config.json", f'{{"vocab_size": {"9" * 100_000}}}'), "config.json is not JSON"),
    "large-number": (changed("config.json", vocab_size=10**4000), "vocab_size must be a whole number above 0"),
    "infinite-number": (put("config.json", '{"model_type": "qwen2", "rope_theta": 1e999}'), "must be a number"),
    "two-values": (
        put("config.json", '{"model_type": "qwen2", "model_type": "own"}'), "'model_type' stands twice, with different",
    ),
    # names
    "name-of-a-terminal": (
        index({"a": "\x1b[2J\x1b]0;owned\x07\n\u202e.safetensors"}), r"lacks 1 of the 1 files that",
    ),
    "name-surrogate": (index({"a": "\ud800.safetensors"}), r"lacks 1 of the 1 files"),
    "name-of-a-megabyte": (index({"a": "n" * 1_000_000 + ".safetensors"}), "lacks 1 of the 1 files"),
    "type-of-a-megabyte": (changed("config.json", model_type="t" * 1_000_000), "does not know the model type"),
    "tensor-names": (
        put(WEIGHTS, weights_header({"\x1b[2J\n" + "n" * 10_000: tensor([1], 4, 8)}, size=8)), "leaves a gap",
    ),
    # weights
    "many-shards": (
        index({f"t{n}": f"model-{n}.safetensors" for n in range(100_000)}), "names 100,000 files, more than 10,000",
    ),
    "negative-shape": (put(WEIGHTS, weights_header({"a": tensor([-1], 0, 4)}, size=4)), "no valid shape and offsets"),
    "overlap": (
        put(WEIGHTS, weights_header({"a": tensor([2], 0, 8), "b": tensor([1], 4, 8)}, size=8)), "a gap or an overlap",
    ),
    "backwards": (put(WEIGHTS, weights_header({"a": tensor([1], 8, 4)}, size=8)), "does not fit its bytes"),
    "product-beyond": (
        put(WEIGHTS, weights_header({"a": tensor([2**62] * 4, 0, 4)}, size=4)), "does not fit its bytes",
    ),
    "dimensions": (
        put(WEIGHTS, weights_header({"a": tensor([2**62] * 200_000, 0, 4)}, size=4)), "no valid shape and offsets",
    ),
    "tensor-twice": (
        put(WEIGHTS, weights_header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
            size=4,
        )),
        "'a' stands twice, with different values",
    ),
    # tokenizers
    "growing-text": (
        normalizer(*[replacing({"String": "a"}, "aa")] * 30), "its normalizer makes texts 128 times as long",
    ),
    "growing-by-patterns": (normalizer(*[replacing({"Regex": "."}, "aaa")] * 30), "its normalizer makes texts"),
    "empty-pattern": (normalizer(replacing({"String": ""}, "x")), "tokenizer.json is not a tokenizer"),
    "pattern": (normalizer(replacing({"Regex": "("}, "x")), "tokenizer.json is not a tokenizer"),
    "absent-special-token": (changed("tokenizer.json", post_processor=special("[NONE]")), "is not a tokenizer"),
    "padding": (
        changed("tokenizer.json", padding={
            "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "x",
        }),
        "it pads to 1,000,000,000 tokens",
    ),
    "negative-id": (
        changed("tokenizer.json", model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}), "not a tokenizer",
    ),
}  # fmt: skip

#: A pattern that backtracks is found by the prompts alone.
REGEX_BOMB: Attack = changed(
    "tokenizer.json",
    pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "(a|aa)+c"}, "behavior": "Isolated", "invert": False,
    },
)  # fmt: skip


def copy(source: str, target: str) -> None:
    """Weights are linked, to save time: no attack changes a file in its place."""
    os.link(source, target) if source.endswith(".safetensors") else shutil.copyfile(source, target)


def make(attack: Attack, folder: Path) -> Path:
    """The toy model with an attack in it."""
    shutil.copytree(TOY_MODEL, folder, copy_function=copy)
    attack(folder)
    return folder


def try_folder(prompts: str, folder: str) -> dict[str, Any]:
    """The command's outcome for a folder."""
    from producer.cli import main

    sys.argv = ["producer", "run", prompts, "--model", folder, "--dry-run"]
    began = time.monotonic()
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = f"{type(error).__name__}: {str(error)[:200]}"
    return {"folder": folder, "code": code, "seconds": time.monotonic() - began, "peak": peak_bytes()}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run() -> None:
    prompts, *folders = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for folder in folders:
        found = try_folder(prompts, folder)
        print(json.dumps(found), flush=True)  # noqa: T201
        print(f"END {folder}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    run()
