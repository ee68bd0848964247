"""The figures of the code's shape beside their bounds: `python -m tests.house` prints them, with what breaks each."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.house import figures
from tests.support.house.import_graph import PACKAGES, import_circles, modules_that_reach
from tests.support.house.words import old_words

SCHEDULER = "worker.engine.scheduling.scheduler"


def main() -> None:
    _print_folders()
    _print_functions()
    circle = import_circles()
    _print_row("import circles", 1 if circle else 0, 0, circle)
    reaching = modules_that_reach(SCHEDULER, "worker.engine")
    _print_row(
        "modules that reach the scheduler", len(reaching), figures.MAX_MODULES_THAT_REACH_THE_SCHEDULER, reaching
    )
    _print_row("docstrings that begin with a what-clause", len(clauses := figures.what_clauses()), 0, clauses)
    _print_row("words given up", len(words := old_words()), 0, words)


def _print_folders() -> None:
    for title, folders in (("product", PACKAGES), ("tests", ["tests"]), ("benchmarks", ["benchmarks"])):
        files = figures.files_per_folder(*folders)
        full = [f"{folder}: {count}" for folder, count in files.most_common() if count > figures.MAX_FILES_PER_FOLDER]
        _print_row(f"files in the fullest folder of {title}", max(files.values()), figures.MAX_FILES_PER_FOLDER, full)


def _print_functions() -> None:
    found = figures.functions(*PACKAGES)
    median, p90 = figures.median_and_p90(found)
    long = [f"{f.place} {f.name}: {f.num_lines}" for f in found if f.num_lines > figures.MAX_FUNCTION]
    _print_row("lines of a function, median", median, figures.MAX_MEDIAN_FUNCTION)
    _print_row("lines of a function, ninth decile", p90, figures.MAX_P90_FUNCTION)
    _print_row(f"lines of the longest function ({found[0].name})", found[0].num_lines, figures.MAX_FUNCTION, long)
    typed = sum(function.has_return_type for function in found) / len(found)
    print(f"{len(found)} functions, {typed:.1%} with a return type")


def _print_row(what: str, value: float, bound: float, offenders: Sequence[str] = ()) -> None:
    print(f"{what:48} {value:6g}  at most {bound:<4g} {'' if value <= bound else 'NOT HELD'}")
    for offender in offenders:
        print(f"    {offender}")


if __name__ == "__main__":
    main()
