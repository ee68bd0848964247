"""The same benchmarks of two checkouts, alternately: of this one and of another, each with its own interpreter.

    python -m benchmarks.compare --other ../before --modules phases pipeline --rounds 3 --options pipeline "--jobs 5000"

Each checkout's `.venv/bin/python` runs `-m benchmarks.MODULE` in that checkout; the order swaps from round to round.
Prints the medians of every figure that both report, with their ratio, then JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parents[1]

#: Names and numbers in the tables of versions that print no JSON; the names are those of the JSON.
TABLES = {
    "phases": re.compile(r"^(?P<name>prefill|up to \d+ running|all) +\d+ +\d+ +(?P<ours>[\d.]+)s +(?P<bound>[\d.]+)s"),
    "pipeline": re.compile(r"^(?P<name>\w+): (?P<jobs_per_second>[\d,]+) jobs/s"),
}
KEYS = {"ours": "seconds/{name}/ours", "bound": "seconds/{name}/bound", "jobs_per_second": "jobs_per_second/{name}"}


@dataclass(frozen=True)
class Checkout:
    """A working tree with an environment of its own, and the figures measured in it so far."""

    root: Path
    figures: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, module: str, options: Sequence[str]) -> None:
        python = self.root / ".venv" / "bin" / "python"
        command = [str(python), "-m", f"benchmarks.{module}", *options]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} in {self.root} failed\n{done.stdout}\n{done.stderr}")
        for name, value in figures_of(module, done.stdout).items():
            self.figures.setdefault(f"{module}/{name}", []).append(value)


def figures_of(module: str, output: str) -> dict[str, float]:
    """The numbers of the last JSON line; of the table where there is no such line."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            return dict(_leaves(json.loads(line)))
    return dict(_table_figures(TABLES[module], output))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Each number with the keys that lead to it; a list of rounds counts as its median."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(item, int | float) for item in value):
        yield path, median(value)
    elif isinstance(value, int | float):
        yield path, value


def _table_figures(pattern: re.Pattern[str], output: str) -> Iterator[tuple[str, float]]:
    for line in output.splitlines():
        if match := pattern.match(line):
            found = match.groupdict()
            name = found.pop("name")
            for kind, number in found.items():
                yield KEYS[kind].format(name=name), float(number.replace(",", ""))


def report(this: Checkout, other: Checkout) -> None:
    """Prints the medians of each figure that both have; the ratio is this one's to the other's."""
    rows = {}
    print(f"\n{'':40} {'other':>12} {'this':>12} {'ratio':>7}")
    for name, values in this.figures.items():
        if name in other.figures:
            before, now = median(other.figures[name]), median(values)
            ratio = now / before if before else float("nan")
            print(f"{name:40} {before:12,.2f} {now:12,.2f} {ratio:7.3f}")
            rows[name] = {"other": other.figures[name], "this": values}
    print(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, help="root of the other checkout")
    parser.add_argument("--modules", nargs="+", default=["phases", "pipeline"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--options", nargs=2, action="append", default=[], metavar=("MODULE", "OPTIONS"),
        help="one module's options, quoted as one word",
    )  # fmt: skip
    given = parser.parse_args()
    options = {module: shlex.split(text) for module, text in given.options}
    this, other = Checkout(HERE), Checkout(given.other.resolve())
    for number in range(given.rounds):
        for module in given.modules:
            for checkout in (other, this) if number % 2 == 0 else (this, other):
                checkout.measure(module, options.get(module, []))
                print(f"round {number + 1}: {module} of {checkout.root}", flush=True)
    report(this, other)


if __name__ == "__main__":
    main()
