"""Compiles the Triton kernels for GPUs that are not at hand: `python -m benchmarks.compiled_kernels --archs 80 90`.

Prints registers, spilled bytes, shared memory and instructions of tensor cores of each kernel, for layers of common
shapes. Ends with 1 where a kernel spills, takes more shared memory than the GPU has, or computes fp32 in tf32. Needs
Triton and no GPU; one Triton compiles for others than another.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from worker.engine.cuda import fill_kernel
from worker.engine.cuda.attention_kernels import attend, attend_split, join_sections
from worker.engine.cuda.kernels import delta_rule, matmul, rms_norm, rotation, swiglu
from worker.engine.cuda.sampling import cuts, reduction, sampler, trace, whole_rows
from worker.engine.cuda.triton_attention import MIN_TILE_ROWS, PROMPT_TILE_ROWS, SECTION, TileShape

#: Shared memory of a block of threads by compute capability, in KiB (CUDA C++ Programming Guide, table 24).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

KERNELS = {
    "prompts": (attend, PROMPT_TILE_ROWS),
    "decoding rows": (attend, MIN_TILE_ROWS),
    "decoding rows, split": (attend_split, MIN_TILE_ROWS),
    "joined sections": (join_sections, MIN_TILE_ROWS),
}

#: Element type, head dimension, query heads of a key head.
LAYERS = [("bf16", 64, 7), ("bf16", 128, 4), ("bf16", 256, 2), ("bf16", 512, 2), ("fp32", 64, 7), ("fp32", 128, 4)]

SAMPLING_KERNELS = (
    reduction.reduce_blocks, reduction.sample_plain_rows, cuts.draw_from_candidates,
    whole_rows.draw_from_whole_rows, trace.count_ranks, trace.find_alternatives,
)  # fmt: skip

#: Sizes of the sampler for vocabularies of up to 262,144 tokens.
SAMPLING_SIZES = {
    "BLOCK": sampler.BLOCK, "CAPACITY": sampler.CAPACITY, "FEW": sampler.FEW, "SUBBLOCKS_PADDED": 8192,
    "NUM_BLOCKS_PADDED": 64,
}  # fmt: skip

SAMPLING_TYPES = {
    "packed": "*i32", "partial": "*fp32", "submax": "*fp32", "statistics": "*fp64", "candidate_scores": "*fp32",
    "candidate_ids": "*i32", "batch_indices": "*i32", "numbers": "*fp64", "integers": "*i64", "num_generated": "*i32",
    "last_token_ids": "*i64", "edit_ids": "*i32", "edit_values": "*fp32", "edit_ranges": "*i32", "history": "*i32",
    "allowed": "*i32", "listed": "*i32",
}  # fmt: skip

LAYER_TYPES = {
    **dict.fromkeys(("bias", "cos", "gate_up", "heads", "keys", "key_weight", "output", "query", "query_weight"), ""),
    **dict.fromkeys(("residual", "rows", "signed_sin", "values", "weight", "x"), ""),
    "partial": "*fp32", "slot_mapping": "*i64", "eps": "fp32", "query_eps": "fp32", "key_eps": "fp32",
}  # fmt: skip

RECURRENT_TYPES = {
    **dict.fromkeys(("output", "inputs", "projected"), ""),
    **dict.fromkeys(("mixed", "core", "matrices", "weight", "bias", "decay_rates", "dt_bias", "norm_weight"), "*fp32"),
    **dict.fromkeys(("rows", "cu_seqlens", "states"), "*i64"),
    **dict.fromkeys(("eps", "scale", "squares_eps"), "fp32"),
    "begins": "*i1",
}  # fmt: skip


FILL_TYPES = {
    "seqused_k": "*i32", "block_table": "*i32", "step_rows": "*i32", "num_prompt_ids": "*i32", "num_generated": "*i32",
    "all_block_tables": "*i32", "input_ids": "*i64", "positions": "*i64", "slot_mapping": "*i64",
    "last_token_ids": "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """The resources of a compiled kernel."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread
    shared_kib: float
    num_tensor_core: int
    has_tf32: bool


def compile_kernel(kernel: Any, arch: int, element: str, dim: int, group: int, wanted_rows: int) -> Compiled:
    tile = TileShape.of(dim, dim, 4 if element == "fp32" else 2, group, wanted_rows)
    constants = {
        "GROUP": group, "DIM": dim, "DIM_PADDED": tile.dim, "VALUE_DIM": dim, "VALUE_DIM_PADDED": tile.value_dim,
        "BLOCK_SIZE": 64, "BLOCK_M": tile.rows, "BLOCK_N": tile.keys, "SECTION": SECTION, "WINDOW": 0, "CHUNK": 0,
        "SOFTCAP": 0.0,        "HAS_SINKS": True,
    }  # fmt: skip
    types = {name: _type_of(name, element) for name in kernel.arg_names}
    aligned = [name for name in types if name.endswith("_stride")]
    options = {"num_warps": tile.num_warps, "num_stages": 2, "enable_fp_fusion": False}
    return _compile(kernel, arch, types, constants, aligned, options)


def compile_sampling_kernel(kernel: Any, arch: int, element: str) -> Compiled:
    types = {name: SAMPLING_TYPES.get(name, "i32") for name in kernel.arg_names} | {"logits": f"*{element}"}
    constants = SAMPLING_SIZES | {"SHIFT": {"bf16": 16, "fp16": 13, "fp32": 0}[element]}
    options: dict[str, Any] = sampler.OPTIONS
    if kernel is cuts.draw_from_candidates:
        constants["CAPACITY"] = sampler.CUT_CAPACITY
    if kernel is whole_rows.draw_from_whole_rows:
        constants["BLOCK"], options = sampler.ROW_BLOCK, sampler.ROW_OPTIONS
    return _compile(kernel, arch, types, constants, ["row_stride", "vocab"], options)


def compile_fill_kernel(arch: int) -> Compiled:
    types = {name: FILL_TYPES.get(name, "i32") for name in fill_kernel.fill_rows.arg_names}
    constants = {"BLOCK_SIZE": 64, "BLOCK": fill_kernel.BLOCK}
    return _compile(fill_kernel.fill_rows, arch, types, constants, [], {"num_warps": 4})


def compile_layer_kernel(kernel: Any, arch: int, element: str, sizes: dict[str, Any]) -> Compiled:
    types = {name: LAYER_TYPES.get(name, "i32") or f"*{element}" for name in kernel.arg_names}
    options: dict[str, Any] = {name: sizes[name] for name in ("num_warps", "num_stages") if name in sizes}
    constants = {name: size for name, size in sizes.items() if name not in options}
    aligned = [name for name in types if name.endswith("_stride") or name in ("size", "num_columns", "num_inner")]
    return _compile(kernel, arch, types, constants, aligned, {"enable_fp_fusion": False, **options})


def layer_kernels(element: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Each kernel of a layer beside attention, by a name, and its sizes."""
    tile = matmul.TILES[4 if element == "fp32" else 2]
    blocks = {
        "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "BLOCK_K": tile.inner, "SECTION": matmul.SECTION,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
    flags = {"HAS_BIAS": True, "HAS_RESIDUAL": True}
    yield "matmul", matmul.gemm, {**blocks, **flags}
    yield "matmul, split", matmul.gemm_split, blocks
    yield "added sections", matmul.add_sections, {"BLOCK_M": 16, "BLOCK_N": 64, "num_warps": tile.num_warps, **flags}
    yield "swiglu", swiglu.gated, {"BLOCK": swiglu.BLOCK, "num_warps": 4}
    for size in (1024, 8192):
        yield f"rms_norm {size}", rms_norm.norm, {"BLOCK": size, "num_warps": rms_norm.num_warps_of(size)}
    for dim in (64, 128, 256):
        heads = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "DIM": dim, "DIM_PADDED": dim, "HEADS": rotation.HEADS}
        yield f"rotation {dim}", rotation.rotate, {**heads, "HAS_NORMS": True, "num_warps": 4}


def recurrent_kernels() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The kernels of a Gated DeltaNet, by a name, with the sizes of Qwen3.5's heads."""
    sizes = {"NUM_HEADS": 32, "VALUE_DIM": 128}
    keys = {"SHARING": 2, "KEY_DIM": 128, "KEYS": 128, "COLUMNS": delta_rule.COLUMNS}
    yield "convolution", delta_rule.convolve, {"TAPS": 4, "HAS_BIAS": False, "BLOCK": delta_rule.CHANNELS}
    yield "delta rule", delta_rule.update_states, sizes | keys
    yield "norm and gate", delta_rule.norm_and_gate, sizes | {"BLOCK": 128}


def compile_recurrent_kernel(kernel: Any, arch: int, element: str, sizes: dict[str, Any]) -> Compiled:
    types = {name: RECURRENT_TYPES.get(name, "i32") or f"*{element}" for name in kernel.arg_names}
    aligned = [name for name in types if name in ("row_stride", "channels")]
    return _compile(kernel, arch, types, sizes, aligned, {"enable_fp_fusion": False, "num_warps": 4})


def _compile(
    kernel: Any,
    arch: int,
    types: dict[str, str],
    constants: dict[str, Any],
    aligned: list[str],
    options: dict[str, Any],
) -> Compiled:
    """Compiles a kernel whose pointers, and the integers `aligned`, are multiples of 16."""
    names = list(kernel.arg_names)
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    indices = [index for index, name in enumerate(names) if signature[name].startswith("*") or name in aligned]
    compiled = triton.compile(
        ASTSource(
            kernel,
            signature,
            {name: constants[name] for name in names if name in constants},
            {(index,): [["tt.divisibility", 16]] for index in indices},
        ),
        target=GPUTarget("cuda", arch, 32),
        options=options,
    )
    registers, spilled = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    num_tensor_core = len(re.findall(r"(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)", ptx))
    return Compiled(registers, spilled, compiled.metadata.shared / 2**10, num_tensor_core, "tf32" in ptx)


def _type_of(name: str, element: str) -> str:
    types = {"block_table": "*i32", "seqused_k": "*i32", "cu_seqlens_q": "*i32", "scale_log2": "fp32"}
    if name.startswith("partial_"):
        return "*fp32"
    return f"*{element}" if name in ("output", "sinks", "query", "keys", "values") else types.get(name, "i32")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of its stack that it stores to: one may have a stack and spill nothing."""
    told = _dump(cubin, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    registers, stack = int(found[1]), int(found[2])
    return registers, stack if stack and re.search(r"\bSTL\b", _dump(cubin, "--dump-sass")) else 0


def _dump(cubin: bytes, what: str) -> str:
    """The answer of a tool of Triton's wheel about a kernel."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
        command = [str(tools / "cuobjdump"), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=int, nargs="+", choices=SHARED_KIB, default=list(SHARED_KIB))
    print(f"Triton {triton.__version__}")
    num_bad = sum(_print(arch, name, made) for arch in parser.parse_args().archs for name, made in _compiled(arch))
    return int(num_bad > 0)


def _compiled(arch: int) -> Iterator[tuple[str, Compiled]]:
    """Each kernel of each shape, by a name."""
    yield "fill_rows", compile_fill_kernel(arch)
    for kernel in SAMPLING_KERNELS:
        for element in ("bf16", "fp32"):
            yield f"{kernel.__name__:20} {element}", compile_sampling_kernel(kernel, arch, element)
    for element in ("bf16", "fp16", "fp32"):
        for name, kernel, sizes in layer_kernels(element):
            yield f"{name:20} {element}", compile_layer_kernel(kernel, arch, element, sizes)
        for name, kernel, sizes in recurrent_kernels():
            yield f"{name:20} {element}", compile_recurrent_kernel(kernel, arch, element, sizes)
    for name, (kernel, rows) in KERNELS.items():
        for element, dim, group in LAYERS:
            yield f"{name:20} {element} dim {dim:3}", compile_kernel(kernel, arch, element, dim, group, rows)


def _print(arch: int, name: str, made: Compiled) -> bool:
    """Prints a kernel's resources; returns whether they are too many."""
    is_bad = bool(made.spilled) or made.shared_kib > SHARED_KIB[arch] or made.has_tf32
    print(
        f"sm_{arch} {name:33}: {made.registers:3} registers, {made.spilled:4} B spilled, "
        f"{made.shared_kib:5.1f} KiB shared, {made.num_tensor_core:3} of tensor cores"
        + (", tf32" if made.has_tf32 else "") + ("  <-- too much" if is_bad else ""),
        flush=True,
    )  # fmt: skip
    return is_bad


if __name__ == "__main__":
    sys.exit(main())
