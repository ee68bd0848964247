"""Tries every model type and writes the outcomes to the table that is shipped: `python -m benchmarks.model_matrix`.

python -m benchmarks.model_matrix                 # all of them, about 30 minutes
python -m benchmarks.model_matrix --untried       # those that are not in the table, such as after an interruption
python -m benchmarks.model_matrix qwen3 gpt_oss   # these alone; the table keeps its other rows
python -m benchmarks.model_matrix --docs          # docs/models.md from the table
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.model_matrix.comparison import Row, compared
from benchmarks.model_matrix.documentation import write_documentation
from benchmarks.model_matrix.tiny import model_types
from models.checkpoint.paths.known_paths import TABLE

#: Of one type; its process is ended by the alarm.
MOST_SECONDS = 900


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; default: all")
    parser.add_argument("--table", type=Path, default=TABLE, help="file of the outcomes; default: the shipped one")
    parser.add_argument("--untried", action="store_true", help="leave out the types that the table has already")
    parser.add_argument("--docs", action="store_true", help="only write the table of docs/models.md")
    options = parser.parse_args()
    if options.docs:
        write_documentation()
        return 0
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    types = options.types or model_types()
    if options.untried:
        types = [model_type for model_type in types if model_type not in _read(options.table)["types"]]
    rows = [_compared(model_type, options.table) for model_type in types]
    wrong = [row for row in rows if not row.is_right or row.path == "crashed"]
    if options.table == TABLE:
        write_documentation()
    for row in wrong:
        print(f"WRONG {row}")  # noqa: T201
    return int(bool(wrong))


def _compared(model_type: str, table_file: Path) -> Row:
    """The outcome of a type, kept in the table at once."""
    _keep(Row(model_type, "crashed", "its process ended"), table_file)  # unless it lives on
    signal.alarm(MOST_SECONDS)
    try:
        row = compared(model_type, with_invariance=True)
    except Exception as error:  # a crash is the outcome that the matrix looks for
        row = Row(model_type, "crashed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    finally:
        signal.alarm(0)
    _keep(row, table_file)
    print(  # noqa: T201
        f"{row.model_type:28} {row.path:9} greedy {row.greedy} beams {row.beams} samples {row.samples} "
        f"fp32 {row.fp32} bf16 {row.bf16} {row.seconds:5.1f} s  {row.reason[:100]}",
        flush=True,
    )
    return row


def _read(table_file: Path) -> dict[str, Any]:
    if not table_file.exists():
        return {"transformers": transformers.__version__, "types": {}}
    table: dict[str, Any] = json.loads(table_file.read_text(encoding="utf-8"))
    return table


def _keep(row: Row, table_file: Path) -> None:
    table = _read(table_file)
    table["transformers"] = transformers.__version__
    table["types"][row.model_type] = _entry(row)
    table["types"] = dict(sorted(table["types"].items()))
    table_file.write_text(_text(table), encoding="utf-8")


def _entry(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name not in ("model_type", "seconds")}


def _text(table: dict[str, Any]) -> str:
    """JSON with a line for each type, so that a change is a line."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table["types"].items())
    return f'{{"transformers": {json.dumps(table["transformers"])}, "types": {{\n{rows}\n}}}}\n'


if __name__ == "__main__":
    raise SystemExit(main())
