"""Counts the kernels and bytes of decode steps at full size, without a GPU: `python -m benchmarks.gpu_roofline`.

Tensors have shapes and no values. An operation of torch is one kernel that reads its inputs and writes its outputs
once; kernels of our own declare the bytes that their programs load and store, which tests count in Triton's
interpreter. Beside them stands the least possible: weights and keys read once.
"""

from __future__ import annotations

import argparse

from benchmarks.gpu.setting import SHAPES
from benchmarks.gpu_roofline.step import H100_BANDWIDTH, KEYS, SAMPLERS, DecodeStep, count_step, sampler_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--running", type=int, nargs="+", default=[16, 256, 1024])
    parser.add_argument("--deterministic", action="store_true", help="matmuls of our own, which share tiles by cache")
    given = parser.parse_args()
    for shape in given.models:
        for num_rows in given.running:
            _print_step(shape, num_rows, count_step(shape, num_rows, deterministic=given.deterministic))
        vocab = SHAPES[shape]().vocab_size
        for name in SAMPLERS:
            moved, logits = sampler_bytes(name, 256, vocab)
            print(f"{shape}: sampler, {name:16} {moved / logits:.2f} x the logits' {logits / 1e6:.0f} MB for 256 rows")


def _print_step(shape: str, num_rows: int, step: DecodeStep) -> None:
    total = step.whole.moved.total()
    print(
        f"{shape}, {num_rows:4} running, {KEYS} keys: {step.layer.kernels.total():2} kernels a layer, "
        f"{step.whole.kernels.total()} in all; {total / 1e9:.2f} GB = {step.ratio:.2f} x weights "
        f"{step.weights / 1e9:.2f} and keys {step.keys / 1e9:.2f}; {1000 * total / H100_BANDWIDTH:.2f} ms at 3 TB/s"
    )
    for name, moved in step.whole.moved.most_common(6):
        print(f"    {name:17} {step.whole.kernels[name]:4} kernels {moved / 1e9:7.3f} GB")


if __name__ == "__main__":
    main()
