"""Weights that are quantized here by each tool's rule are multiplied out to what that rule means, and decode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoint.folder import check_folder
from models.checkpoint.small_files import CheckpointProblem, read_json_object
from models.params import GenerationParams
from tests.support.model_folders import edit_json, make_small_model
from worker.engine.engine import Engine
from worker.engine.loading.dequantize import dequantized_weights
from worker.engine.loading.quantized_formats import (
    FP4_VALUES,
    dequantize_bitsandbytes,
    dequantize_gptq,
    dequantize_mxfp4,
)
from worker.engine.request import ModelUnavailable, Request

#: A weight [out, in] to its quantized tensors by the end of their names, and the weight that these mean.
Quantize = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
GROUP = 8


def packed(numbers: Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Numbers side by side in words of 32 bits."""
    count = 32 // bits
    moved = numbers.movedim(dim, -1)
    moved = moved.reshape(*moved.shape[:-1], -1, count).to(torch.int64)
    words = torch.zeros(moved.shape[:-1], dtype=torch.int64)
    for place, source in enumerate(order or range(count)):
        words |= moved[..., source] << (bits * place)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).movedim(-1, dim).contiguous()


def asymmetric(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of 4 bits, zeros and scales of groups of input channels, from [in, out]."""
    groups = weight.view(-1, GROUP, weight.shape[1])
    scale = ((groups.amax(1) - groups.amin(1)) / 14).half().float().clamp_min(1e-3)
    zero = (-groups.amin(1) / scale).round().clamp(1, 15)
    numbers = (groups / scale[:, None] + zero[:, None]).round().clamp(0, 15)
    return numbers.reshape(weight.shape).int(), zero.int(), scale


def meant(numbers: Tensor, zero: Tensor, scale: Tensor) -> Tensor:
    wide = [each.repeat_interleave(GROUP, 0) for each in (zero, scale)]
    return ((numbers - wide[0]).float() * wide[1]).T.contiguous()


def gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, zero, scale = asymmetric(weight.T.contiguous())
    parts = {".qweight": packed(numbers, 4, 0), ".qzeros": packed(zero - 1, 4, 1), ".scales": scale.half()}
    parts[".g_idx"] = torch.arange(len(numbers), dtype=torch.int32) // GROUP
    return parts, meant(numbers, zero, scale)


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, zero, scale = asymmetric(weight.T.contiguous())
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {".qweight": packed(numbers, 4, 1, order), ".qzeros": packed(zero, 4, 1, order), ".scales": scale.half()}
    return parts, meant(numbers, zero, scale)


def fp8_blocks(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = torch.rand(-(-weight.shape[0] // 16), -(-weight.shape[1] // 16)) + 0.5
    numbers = weight.to(torch.float8_e4m3fn)
    wide = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)[: weight.shape[0], : weight.shape[1]]
    return {".weight": numbers, ".weight_scale_inv": scale}, numbers.float() * wide


def compressed_int4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    groups = weight.view(weight.shape[0], -1, GROUP)
    scale = (groups.abs().amax(-1) / 7).clamp_min(1e-3)
    numbers = (groups / scale[..., None]).round().clamp(-8, 7).reshape(weight.shape).int()
    parts = {".weight_packed": packed(numbers + 8, 4, 1), ".weight_scale": scale}
    parts[".weight_shape"] = torch.tensor(weight.shape)
    return parts, numbers.float() * scale.repeat_interleave(GROUP, 1)


def compressed_fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = torch.rand(weight.shape[0], 1) + 0.5
    numbers = weight.to(torch.float8_e4m3fn)
    return {".weight": numbers, ".weight_scale": scale}, numbers.float() * scale


def nf4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """16 per block; the absolute maxima are quantized once more."""
    table = torch.linspace(-1, 1, 16)
    blocks = weight.reshape(-1, 16)
    nested_map, offset = torch.linspace(0, 1, 256), 0.01
    codes = torch.randint(1, 256, (len(blocks),), dtype=torch.uint8)
    nested = torch.rand(-(-len(blocks) // 4)) + 0.5
    absmax = nested_map[codes.long()] * nested.repeat_interleave(4)[: len(blocks)] + offset
    indices = (blocks[..., None] / absmax[:, None, None] - table).abs().argmin(-1).flatten()
    state = {
        "quant_type": "nf4", "blocksize": 16, "dtype": "float32", "shape": list(weight.shape), "nested_blocksize": 4,
        "nested_dtype": "float32", "nested_offset": offset,
    }  # fmt: skip
    parts = {
        ".weight": ((indices[::2] << 4) | indices[1::2]).to(torch.uint8)[:, None],
        ".weight.absmax": codes,
        ".weight.quant_map": table,
        ".weight.nested_absmax": nested,
        ".weight.nested_quant_map": nested_map,
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }
    return parts, (table[indices] * absmax.repeat_interleave(16)).view(weight.shape)


def int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    largest = weight.abs().amax(1)
    numbers = (weight / largest[:, None] * 127).round().to(torch.int8)
    return {".weight": numbers, ".SCB": largest}, numbers.float() * (largest[:, None] / 127)


COMPRESSED: dict[str, Any] = {"quant_method": "compressed-tensors"}
FORMATS: dict[str, tuple[Quantize, dict[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "fp8": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "compressed-int4": (compressed_int4, {**COMPRESSED, "config_groups": {"g": {"weights": {"num_bits": 4}}}}),
    "compressed-fp8": (compressed_fp8, {**COMPRESSED, "config_groups": {"g": {"weights": {"num_bits": 8}}}}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


def quantized_folder(folder: Path, name: str) -> dict[str, Tensor]:
    """A small model whose projections are quantized; returns all weights that the folder means."""
    return quantize_folder(make_small_model(folder), name)


def quantize_folder(folder: Path, name: str) -> dict[str, Tensor]:
    """Quantizes a model's projections in its folder; returns all weights that the folder means."""
    torch.manual_seed(1)
    quantize, config = FORMATS[name]
    stored, expected = {}, {}
    for tensor_name, weight in load_file(folder / "model.safetensors").items():
        if not tensor_name.endswith("_proj.weight"):
            stored[tensor_name] = expected[tensor_name] = weight
            continue
        parts, expected[tensor_name] = quantize(weight)
        layer = tensor_name.removesuffix(".weight")
        stored |= {f"{layer}{end}": part.contiguous() for end, part in parts.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", quantization_config=config)
    return expected


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_multiplied_out_exactly(name: str, tmp_path: Path) -> None:
    expected = quantized_folder(tmp_path / "model", name)
    config = read_json_object(tmp_path / "model" / "config.json")
    found = dequantized_weights(tmp_path / "model", config, torch.float32)
    assert found.keys() == expected.keys()
    for tensor_name, weight in expected.items():
        assert torch.equal(found[tensor_name], weight), tensor_name


@pytest.mark.parametrize("name", ["gptq", "fp8", "nf4"])
def test_a_quantized_folder_decodes_as_its_weights_do(name: str, tmp_path: Path) -> None:
    expected = quantized_folder(tmp_path / "model", name)
    plain = make_small_model(tmp_path / "plain")
    save_file(expected, plain / "model.safetensors", metadata={"format": "pt"})
    answers = []
    for folder in (tmp_path / "model", plain):
        engine = Engine.load(str(folder), dtype="float32", device="cpu", kv_memory=0.05)
        (output,) = engine.generate([Request(0, (5, 6, 7), GenerationParams(max_new_tokens=8))])
        answers.append((output.completions[0].token_ids, engine.loaded.limits.eos_token_ids))
    assert answers[0] == answers[1]


def test_mxfp4_is_a_table_times_a_power_of_two() -> None:
    blocks = torch.randint(0, 256, (2, 3, 4, 16), dtype=torch.uint8)  # experts, rows, groups
    scales = torch.randint(120, 134, (2, 3, 4), dtype=torch.uint8)
    found = dequantize_mxfp4({"_blocks": blocks, "_scales": scales}, {})
    assert found.shape == (2, 128, 3)
    for expert, row, group, byte in [(0, 0, 0, 0), (1, 2, 3, 15), (0, 1, 2, 7)]:
        power = 2.0 ** (int(scales[expert, row, group]) - 127)
        value = int(blocks[expert, row, group, byte])
        assert found[expert, group * 32 + 2 * byte, row] == FP4_VALUES[value & 15] * power
        assert found[expert, group * 32 + 2 * byte + 1, row] == FP4_VALUES[value >> 4] * power


def test_a_variant_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    quantized_folder(tmp_path / "model", "awq")
    edit_json(tmp_path / "model" / "config.json", quantization_config={"quant_method": "awq", "version": "gemv"})
    with pytest.raises(ModelUnavailable, match="AWQ of version gemv"):
        dequantized_weights(tmp_path / "model", read_json_object(tmp_path / "model" / "config.json"), torch.float32)


def test_a_layer_without_all_its_tensors_is_refused_by_name(tmp_path: Path) -> None:
    quantized_folder(tmp_path / "model", "gptq")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("q_proj.scales")}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"q_proj .*cannot be multiplied out"):
        dequantized_weights(tmp_path / "model", read_json_object(tmp_path / "model" / "config.json"), torch.float32)


@pytest.mark.parametrize("end", [".scale", ".qscale_weight"])
def test_a_scale_under_another_name_is_refused_and_not_left_out(end: str, tmp_path: Path) -> None:
    quantized_folder(tmp_path / "model", "fp8")
    path = tmp_path / "model" / "model.safetensors"
    tensors = {name.replace(".weight_scale_inv", end): each for name, each in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointProblem, match=f"is quantized, and its scale .*{end} is of a form"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_of_nothing_borrows_from_the_one_beside_it(bits: int) -> None:
    """GPTQModel takes 1 from each number of a word at once."""
    generator = torch.Generator().manual_seed(4)
    weight, zeros = (torch.randint(0, 2**bits, (32, 32), generator=generator) for _ in range(2))
    ones = sum(1 << shift for shift in range(0, 32, bits))
    stored = (packed(zeros, bits, 1).long() - ones).to(torch.int32)
    scales = torch.rand(32, 32, generator=generator)
    parts = {".qweight": packed(weight, bits, 0), ".qzeros": stored, ".scales": scales}
    expected = ((weight - zeros) * scales).T
    assert torch.equal(dequantize_gptq(parts, {"bits": bits, "group_size": 1}), expected)
    # A layer with bits of its own in a folder of others.
    own = parts | {".g_idx": torch.arange(32, dtype=torch.int32)}
    assert torch.equal(dequantize_gptq(own, {"bits": 8 if bits == 4 else 4, "group_size": 1}), expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_bias_of_zeros_that_no_layer_has_is_left_out(value: float, tmp_path: Path) -> None:
    quantized_folder(tmp_path / "model", "gptq")
    engine = Engine.load(str(tmp_path / "model"), dtype="float32", device="cpu", kv_memory=0.05)
    (expected,) = engine.generate([Request(0, (5, 6, 7), GenerationParams(max_new_tokens=8))])
    path = tmp_path / "model" / "model.safetensors"
    bias = {"model.layers.0.mlp.down_proj.bias": torch.full((64,), value)}
    save_file(load_file(path) | bias, path, metadata={"format": "pt"})
    if value:
        with pytest.raises(ModelUnavailable, match=r"such as model.layers.0.mlp.down_proj.bias"):
            Engine.load(str(tmp_path / "model"), dtype="float32", device="cpu", kv_memory=0.05)
        return
    engine = Engine.load(str(tmp_path / "model"), dtype="float32", device="cpu", kv_memory=0.05)
    (found,) = engine.generate([Request(0, (5, 6, 7), GenerationParams(max_new_tokens=8))])
    assert found.completions[0].token_ids == expected.completions[0].token_ids


def test_four_bits_that_are_stored_in_another_dtype() -> None:
    """As bnb_4bit_quant_storage asks for; a bfloat16 is two bytes of them."""
    parts, expected = nf4(torch.randn(32, 64, generator=torch.Generator().manual_seed(3)))
    wide = parts | {".weight": parts[".weight"].reshape(-1).view(torch.bfloat16)[:, None]}
    assert torch.equal(dequantize_bitsandbytes(wide, {}), expected)


def test_weights_that_are_rotated_as_they_run_are_refused(tmp_path: Path) -> None:
    quantized_folder(tmp_path / "model", "compressed-int4")
    path = tmp_path / "model" / "config.json"
    given = read_json_object(path)["quantization_config"]
    edit_json(path, quantization_config={**given, "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}})
    with pytest.raises(CheckpointProblem, match="quantized and rotated"):
        check_folder(tmp_path / "model")
