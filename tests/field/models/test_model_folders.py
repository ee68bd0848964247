"""Model folders as downloads leave them: refused in one sentence, by the producer and by the engine alike."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.activations import ACT2CLS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto import modeling_auto

import worker.cli
from models.checkpoint.config import text_part
from models.checkpoint.folder import check_folder
from models.checkpoint.transformers_source.architectures import known_architectures
from models.checkpoint.transformers_source.looked_up_names import _names, check_names
from producer.cli import main
from producer.errors import UsageError
from producer.runs.model_check import check_model
from tests.support.model_folders import LFS_POINTER, edit_header, edit_json, make_small_model
from tests.support.processes import CommandProcess
from worker.engine.model_loader import load_model
from worker.engine.request import ModelUnavailable

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST_SHARD = "model-00001-of-"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_model(tmp_path_factory.mktemp("models") / "sharded", shard_size="20KB")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def write(name: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(*patterns: str) -> Damage:
    def do(folder: Path) -> None:
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()

    return do


def config(**values: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **values)


def header(edit: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: edit_header(folder / WEIGHTS, edit)


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def cut(name: str, by: int = 100) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def absent_link(name: str) -> Damage:
    return both(remove(name), lambda folder: (folder / name).symlink_to("../blobs/gone"))


def rename(old: str, new: str) -> Damage:
    return lambda folder: (folder / old).rename(folder / new)


def one_level_down(folder: Path) -> None:
    inner = folder / "Qwen2-0.5B"
    inner.mkdir()
    for path in folder.iterdir():
        if path != inner:
            path.rename(inner / path.name)


def quantized(method: str, **values: Any) -> Damage:
    return config(quantization_config={"quant_method": method, **values})


NORM = "model.norm.weight"
SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"

#: Damage -> (how it is done, parts of the sentence).
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    # downloads that gave something else
    "weights-lfs": (write(WEIGHTS, LFS_POINTER), [WEIGHTS, "Git LFS pointer", "git lfs pull"]),
    "tokenizer-lfs": (write("tokenizer.json", LFS_POINTER), ["tokenizer.json", "Git LFS pointer", "git lfs pull"]),
    "config-lfs": (write("config.json", LFS_POINTER), ["config.json", "Git LFS pointer", "git lfs pull"]),
    "weights-page": (write(WEIGHTS, "<!DOCTYPE html><title>Sign in"), ["is a web page", "download it again"]),
    "config-page": (write("config.json", "<html>429 Too Many Requests"), ["is a web page", "download it again"]),
    "weights-empty": (write(WEIGHTS, ""), [WEIGHTS, "is empty", "download it again"]),
    "config-empty": (write("config.json", ""), ["config.json is empty"]),
    "weights-link": (absent_link(WEIGHTS), ["link to a file that is absent", "download it again"]),
    "config-link": (absent_link("config.json"), ["link to a file that is absent"]),
    # safetensors files
    "weights-cut": (cut(WEIGHTS), ["is truncated", "download it again"]),
    "weights-cut-in-header": (lambda folder: os.truncate(folder / WEIGHTS, 100), ["is truncated", "the file has 100"]),
    "weights-short": (write(WEIGHTS, b"\1\0\0"), ["does not begin with the length of a header"]),
    "weights-text": (write(WEIGHTS, b"PK\3\4" * 500), ["does not begin with the length of a header"]),
    "weights-longer": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more"),
        ["4 bytes more than its header names"],
    ),
    "header-no-json": (write(WEIGHTS, struct.pack("<Q", 9) + b"{'tensor'"), ["header is not JSON"]),
    "header-nested": (write(WEIGHTS, struct.pack("<Q", 200_000) + b"[" * 200_000), ["header is not JSON"]),
    "header-list": (write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), ["header is not a JSON object"]),
    "header-huge": (write(WEIGHTS, struct.pack("<Q", 2**60) + b"{}" * 99), ["does not begin with the length"]),
    "header-claims-more": (header(lambda h: h[NORM].update(data_offsets=[0, 10**12])), ["does not fit its bytes"]),
    "header-negative": (header(lambda h: h[NORM].update(data_offsets=[-32, 32])), ["no valid shape and offsets"]),
    "header-overlap": (header(lambda h: h[NORM].update(data_offsets=[0, 64])), ["a gap or an overlap"]),
    "header-dtype": (header(lambda h: h[NORM].update(dtype="Q4_K")), ["unknown dtype 'Q4_K'"]),
    "header-shape": (header(lambda h: h[NORM].update(shape=[17])), [NORM, "does not fit its bytes"]),
    "header-entry": (header(lambda h: h.update({NORM: 3})), ["entry 'model.norm.weight' is not an object"]),
    "header-renamed": (header(lambda h: h.update({"norm.w": h.pop(NORM)})), ["lack 1 tensors", NORM]),
    # weights that are absent, or of another kind
    "no-weights": (remove(WEIGHTS), ["has no safetensors (found: no weights)"]),
    "only-bin": (rename(WEIGHTS, "pytorch_model.bin"), ["found: pytorch_model.bin", "save_pretrained"]),
    "only-pth": (rename(WEIGHTS, "consolidated.00.pth"), ["found: consolidated.00.pth"]),
    "only-gguf": (rename(WEIGHTS, "model.Q4_K_M.gguf"), ["found: model.Q4_K_M.gguf"]),
    "gguf-alone": (
        both(remove("config.json", WEIGHTS), write("m.gguf", "GGUF")), ["has no config.json but m.gguf", "GGUF"],
    ),
    "other-name": (rename(WEIGHTS, "consolidated.safetensors"), ["consolidated.safetensors, but neither", INDEX]),
    "unfinished": (rename(WEIGHTS, WEIGHTS + ".part"), ["is an unfinished download"]),
    # another model's config or weights
    "vocab-other": (config(vocab_size=2048), ["vocab_size is 2,048", "1,024 rows"]),
    "layers-more": (config(num_hidden_layers=48), ["num_hidden_layers is 48", "the weights have 2 layers"]),
    "width-other": (config(intermediate_size=48), ["cannot load the model", "its weights have other shapes"]),
    "untied": (config(tie_word_embeddings=False), ["lack 1 tensors", "lm_head.weight"]),
    "type-other": (
        config(model_type="llama", architectures=["LlamaForCausalLM"]),
        ["hold 6 tensors that layers of its configuration do not have", "self_attn.k_proj.bias"],
    ),
    # quantized weights
    "hqq": (quantized("hqq", bits=4), ["quantized (hqq, 4 bits)", "take the unquantized model"]),
    "aqlm": (quantized("aqlm"), ["quantized (aqlm)", "take the unquantized model"]),
    "gguf-config": (quantized("gguf"), ["quantized (gguf)"]),
    "mlx": (config(quantization={"group_size": 64, "bits": 4}), ["quantized (mlx, 4 bits)"]),
    "method-absent": (config(quantization_config={}), ["quantization_config names no quant_method; remove it"]),
    "gptq-file": (write("quantize_config.json", '{"bits": 4}'), ["quantize_config.json", "quantized (GPTQ)"]),
    "fp8-silent": (
        header(lambda h: h.update({"model.scale": {"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]}})),
        ["quantized (tensor 'model.scale', F8_E4M3)"],
    ),
    # tokenizers
    "no-tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ["has no tokenizer", "copy the model's"]),
    "config-alone": (remove("tokenizer.json"), ["has no tokenizer"]),
    "sentencepiece": (
        both(remove("tokenizer.json"), write("tokenizer.model", SENTENCEPIECE)),
        ["tokenizer.model can be read with", "pip install sentencepiece", "or copy tokenizer.json"],
    ),
    "tiktoken": (
        both(remove("tokenizer.json"), write("tokenizer.model", "IQ== 0\nIg== 1\n")), ["pip install tiktoken"],
    ),
    "tokenizer-cut": (cut("tokenizer.json"), ["tokenizer.json is not JSON", "download it again"]),
    "tokenizer-other": (write("tokenizer.json", '{"a": 1}'), ["tokenizer.json is not a tokenizer: it has no model"]),
    "tokenizer-model": (write("tokenizer.json", '{"model": {"type": "BPE"}}'), ["tokenizer"]),
    # JSON that is none
    "config-no-json": (write("config.json", "{'model_type': 'qwen2'}"), ["config.json is not JSON"]),
    "config-list": (write("config.json", "[]"), ["must hold a JSON object, not list"]),
    "config-latin": (write("config.json", b'{"a": "\xe9"}'), ["config.json is not JSON", "download it again"]),
    "config-nested": (write("config.json", "[" * 100_000), ["config.json is not JSON"]),
    "generation-config": (write("generation_config.json", "{"), ["generation_config.json is not JSON"]),
    "tokenizer-config": (write("tokenizer_config.json", "null"), ["tokenizer_config.json must hold a JSON object"]),
    "token-number": (
        lambda folder: edit_json(folder / "tokenizer_config.json", eos_token=5),
        ["tokenizer_config.json: eos_token must be a token, got '5'"],
    ),
    "added-tokens": (
        lambda folder: edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"x": {"content": "y"}}),
        ["added_tokens_decoder must be an object of token ids and tokens"],
    ),
    "token-map": (write("special_tokens_map.json", '{"eos_token": 5}'), ["special_tokens_map.json: eos_token must be"]),
    "added-id": (write("added_tokens.json", '{"<x>": "a"}'), ["added_tokens.json: '<x>' must be a token id, got 'a'"]),
    "merges-lfs": (
        both(remove("tokenizer.json"), write("vocab.json", "{}"), write("merges.txt", LFS_POINTER)),
        ["merges.txt is a Git LFS pointer"],
    ),
    "template-lfs": (write("chat_template.jinja", LFS_POINTER), ["chat_template.jinja is a Git LFS pointer"]),
    "template-latin": (write("chat_template.jinja", b"{{ '\xe9' }}"), ["chat_template.jinja is not UTF-8 text"]),
    "metadata": (header(lambda h: h.update(__metadata__={"format": 3})), ["metadata of its header are not texts"]),
    # models of other kinds
    "no-type": (config(model_type=...), ["has no model_type", "give a model folder of Transformers"]),
    "unknown-type": (config(model_type="qwen9"), ["does not know the model type 'qwen9'", "upgrade transformers"]),
    "own-code": (config(model_type="own", auto_map={}), ["needs the code of its repository, which is never run"]),
    "vision": (config(model_type="clip"), ["'clip' is not a causal language model"]),
    "t5": (config(model_type="t5", is_encoder_decoder=True), ["is an encoder-decoder"]),
    "bert": (config(model_type="bert", architectures=["BertForMaskedLM"]), ["BertForMaskedLM", "not a causal"]),
    "embedding": (config(architectures=["Qwen2Model"]), ["Qwen2Model", "give one of Qwen2ForCausalLM"]),
    "classifier": (config(architectures=["Qwen2ForSequenceClassification"]), ["not a causal language model"]),
    "architectures": (config(architectures="Qwen2ForCausalLM"), ["architectures must be a list"]),
    "count-negative": (config(num_hidden_layers=-3), ["num_hidden_layers must be a whole number above 0, got '-3'"]),
    "ids": (config(eos_token_id=[2, "</s>"]), ["eos_token_id must be a token id or a list of them"]),
    "generation-ids": (
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=2.5),
        ["generation_config.json: eos_token_id must be a token id"],
    ),
    "heads": (config(num_attention_heads=4, num_key_value_heads=3), ["num_attention_heads must be a multiple of"]),
    "flag": (config(tie_word_embeddings="yes"), ["tie_word_embeddings must be true or false, got 'yes'"]),
    "number": (config(rms_norm_eps="1e-6"), ["rms_norm_eps must be a number, got '1e-6'"]),
    "not-a-number": (config(rope_theta=float("nan")), ["rope_theta must be a number, got 'nan'"]),
    "rope": (config(rope_scaling="linear"), ["rope_scaling must be an object, got 'linear'"]),
    "activation": (config(hidden_act="silly"), ["knows no hidden_act 'silly'", "gelu", "upgrade transformers"]),
    "rope-type": (
        config(rope_parameters=..., rope_scaling={"type": "yarnn", "factor": 4.0}),
        ["knows no rope_type 'yarnn'", "yarn"],
    ),
    "dtype": (config(dtype="int4"), ["dtype must be one of float64, float32", "got 'int4'"]),
    "count-text": (config(vocab_size="many"), ["vocab_size must be a whole number above 0, got 'many'"]),
    "count-huge": (config(hidden_size=10**30), ["hidden_size must be a whole number above 0"]),
    # folders that are none
    "adapter": (
        write("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2-0.5B"}'),
        ["is an adapter (LORA) of Qwen/Qwen2-0.5B", "merge_and_unload"],
    ),
    "too-high": (one_level_down, ["has no config.json", "give ", "/Qwen2-0.5B"]),
    "diffusers": (both(remove("config.json"), write("model_index.json", "{}")), ["pipeline of diffusers"]),
    "original": (both(remove("config.json"), write("params.json", "{}")), ["makers' own format"]),
    "config-folder": (both(remove("config.json"), lambda folder: (folder / "config.json").mkdir()), ["config.json"]),
}  # fmt: skip

SHARD_DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "shard-absent": (
        remove(f"{FIRST_SHARD}*"),
        ["lacks 1 of the", FIRST_SHARD, "download them again"],
    ),
    "shard-cut": (lambda folder: [cut(path.name)(folder) for path in folder.glob(f"{FIRST_SHARD}*")], ["is truncated"]),
    "shard-lfs": (
        lambda folder: [path.write_text(LFS_POINTER) for path in folder.glob(f"{FIRST_SHARD}*")], ["Git LFS pointer"],
    ),
    "no-index": (remove(INDEX), [INDEX, "is missing; download it"]),
    "index-no-json": (write(INDEX, "{"), [INDEX, "is not JSON"]),
    "index-lfs": (write(INDEX, LFS_POINTER), [INDEX, "Git LFS pointer"]),
    "index-no-map": (write(INDEX, "{}"), ["has no weight_map"]),
    "index-outside": (write(INDEX, '{"weight_map": {"a": "../../x.safetensors"}}'), ["outside of its folder"]),
    "index-tensor": (
        lambda folder: edit_json(
            folder / INDEX, weight_map=json.loads((folder / INDEX).read_text())["weight_map"] | {
                "lm_head.weight": sorted(path.name for path in folder.glob("model-*"))[0]
            },
        ),
        ["lacks lm_head.weight", "download both again"],
    ),
}  # fmt: skip


def message_of(look: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as refused:
        look()
    return str(refused.value)


def check_both(folder: Path, parts: list[str]) -> None:
    """Producer and engine give one line with the parts; the engine the producer's, where the producer sees it."""
    told = message_of(lambda: load_model(str(folder), "cpu"), ModelUnavailable)
    assert "\n" not in told and all(part in told for part in parts), told
    try:
        check_model(str(folder))
    except UsageError as refused:
        assert "\n" not in str(refused)
        assert all(part in str(refused) for part in parts), refused
        return
    assert parts[0].startswith(("lack", "hold", "cannot load")), "only the engine compares every shape"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_producer_and_engine(damage: str, folder: Path) -> None:
    do, parts = DAMAGES[damage]
    do(folder)
    check_both(folder, parts)


@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_damaged_shards_are_refused_by_producer_and_engine(damage: str, shards: Path) -> None:
    do, parts = SHARD_DAMAGES[damage]
    do(shards)
    check_both(shards, parts)


@pytest.mark.parametrize("fixture", ["folder", "shards"])
def test_a_whole_folder_loads(fixture: str, request: pytest.FixtureRequest) -> None:
    found: Path = request.getfixturevalue(fixture)
    assert check_model(str(found)) == str(found)
    assert load_model(str(found), "cpu", "float32").limits.vocab_size == 1024


HARMLESS: dict[str, Damage] = {
    "other-weights-beside": write("pytorch_model.bin", LFS_POINTER),
    "no-generation-config": remove("generation_config.json"),
    "no-tokenizer-config": remove("tokenizer_config.json"),
    "no-architectures": config(architectures=...),
    "fewer-layers": config(num_hidden_layers=1, layer_types=...),
    "auto-map-of-a-known-type": config(auto_map={"AutoModelForCausalLM": "modeling.Own"}),
    "no-quantization": config(quantization=None),
    "rope-of-old": config(rope_parameters=..., rope_scaling={"type": "linear", "factor": 2.0}),
    "activation-of-old": config(hidden_act="swish"),
    "more-metadata": header(lambda h: h.update(__metadata__={"format": "pt", "source": "here"})),
    "spaces-after-the-header": header(lambda h: h.update(__metadata__={"format": "pt", "pad": " " * 99})),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_a_harmless_change_loads(change: str, folder: Path) -> None:
    HARMLESS[change](folder)
    check_model(str(folder))
    load_model(str(folder), "cpu", "float32")


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda path: path.mkdir(), ["the folder is empty"]),
        (lambda path: path.write_bytes(b"GGUF"), ["is a file", "give the folder"]),
        (lambda path: path.symlink_to("gone"), ["is a file", "give the folder"]),
    ],
    ids=["empty", "file", "link"],
)
def test_a_path_that_is_no_model_folder(make: Callable[[Path], object], parts: list[str], tmp_path: Path) -> None:
    make(tmp_path / "model")
    told = message_of(lambda: check_model(str(tmp_path / "model")), UsageError)
    assert "\n" not in told and all(part in told for part in parts), told


@pytest.fixture
def another_user() -> Iterator[Path]:
    """A folder that others may enter, while the process is not root: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    is_root = os.geteuid() == 0
    yield folder
    if is_root:
        os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [".", "config.json", "tokenizer.json", WEIGHTS])
def test_files_without_permission(name: str, whole: Path, another_user: Path) -> None:
    folder = Path(shutil.copytree(whole, another_user / "model"))
    (folder / name).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    told = message_of(lambda: check_model(str(folder)), UsageError)
    assert str(folder / name) in told and "cannot be read: Permission denied" in told and "permissions" in told


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["producer", *arguments])
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("damage", ["weights-lfs", "weights-cut", "hqq", "no-tokenizer", "config-no-json", "adapter"])
def test_commands_refuse_before_anything_is_written(
    damage: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    do, parts = DAMAGES[damage]
    do(folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    before = sorted(path.name for path in tmp_path.iterdir())
    for command in (["run", "p.jsonl"], ["submit", "p.jsonl", "--broker", "redis://127.0.0.1:1"]):
        assert call([*command, "--model", str(folder)], monkeypatch) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
        assert all(part in printed.err for part in parts) and not printed.out
    assert call(["doctor", "--model", str(folder)], monkeypatch) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " model " in line]
    assert line.startswith("BAD") and all(part in line for part in parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", ["weights-cut", "width-other"])
@pytest.mark.usefixtures("sqlite_database")
def test_a_worker_says_why_in_one_line(damage: str, folder: Path, broker: str, sqlite_url: str, tmp_path: Path) -> None:
    do, parts = DAMAGES[damage]
    do(folder)
    arguments = ["start", "--devices", "cpu", "--model", folder, "--broker", broker, "--database", sqlite_url]
    with CommandProcess("worker", arguments, tmp_path) as process:
        assert process.finish() == 2
        log = "".join(process.lines)
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if line.startswith("worker: ")]
    assert all(part in line for part in parts)


@pytest.mark.parametrize("damage", ["weights-cut", "aqlm", "sentencepiece"])
def test_a_worker_refuses_a_damaged_folder_at_once(
    damage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    do, parts = DAMAGES[damage]
    do(folder)
    monkeypatch.setattr(sys, "argv", ["worker", "start", "--model", str(folder), "--devices", "cpu,cpu"])
    with pytest.raises(SystemExit) as ended:
        worker.cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("worker: ") and told.count("\n") == 1 and all(part in told for part in parts), told


def test_the_tables_of_model_types_are_those_of_transformers() -> None:
    known = known_architectures()
    assert known.causal == dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(set(CONFIG_MAPPING) - set(known.configs)) < 20
    assert {"bert", "t5", "whisper", "qwen2"} <= set(known.configs)


def test_the_names_that_classes_look_up_are_those_of_transformers() -> None:
    """And every model's own configuration passes."""
    assert _names("ACT2FN") == set(ACT2CLS)
    assert _names("ROPE_INIT_FUNCTIONS") == set(ROPE_INIT_FUNCTIONS)
    without_defaults = {"gemma4_assistant"}  # Transformers refuses its own
    for model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - without_defaults:
        own = CONFIG_MAPPING[model_type]().to_dict()
        check_names(Path("config.json"), text_part(own))
    for model_type, kind in (("phi3", "su"), ("qwen2_vl", "mrope")):  # names that the class itself knows
        check_names(Path("config.json"), {"model_type": model_type, "rope_scaling": {"type": kind}})


def test_two_hundred_shards_are_read_by_their_headers_alone(folder: Path) -> None:
    """Each shard claims a terabyte of tensors: a sparse file has them, and nothing could read them."""
    num_bytes = 10**12
    weight_map = {}
    for number in range(200):
        text = json.dumps(
            {f"t{number}": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}
        ).encode()
        with (folder / f"s{number}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + num_bytes)
        weight_map[f"t{number}"] = f"s{number}.safetensors"
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    check_folder(folder)
