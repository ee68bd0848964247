"""The words that the code has given up for the field's, and where they still stand.

Decisions and the changelog keep their words, and so do public options, stored values and SQL names.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.support.processes import ROOT

#: The beginnings of words in -ize, which others write in -ise.
STEMS = (
    "normal", "renormal", "unnormal", "initial", "token", "detoken", "vector", "summar", "serial", "organ", "recogn",
    "optim", "priorit", "parallel", "synchron", "final", "minim", "maxim", "special",
)  # fmt: skip

#: Parts of identifiers (old_thing, ThingOld), everywhere.
PARTS = {
    "products": "matmul, gemm",
    "multiply": "matmul, gemm",
    "panel": "packed weights",
    "panels": "packed weights",
    "furnish": "carve_workspace",
    "streamed": "non-temporal",
    "chooser": "Sampler",
    "quantise": "quantize",
    "quantised": "quantized",
    "patience": "outages",
    "vital": "critical",
    "refusal": "admission",
    "levers": "ablations",
    "lever": "ablation",
    "growth": "scaling",
    "settle": "collect",
    "settled": "acknowledged, final",
    "forget": "release",
    "nudge": "notify",
    **{f"{stem}ise{end}": f"{stem}ize{end}" for stem in STEMS for end in ("", "d", "s")},
}

#: Whole identifiers, everywhere.
NAMES = {
    "pack_tiles": "weight layout",
    "After": "Epilogue",
    "Worth": "DequantizationScales",
    "worth": "scales",
    "turn": "transpose",
    "Room": "Workspace",
    "weigh": "exp_scores",
    "shares": "probs",
    "first_rows": "cu_seqlens_q",
    "num_keys": "seqused_k",
    "max_queries": "max_seqlen_q",
    "max_keys": "max_seqlen_k",
    "KVBlocks": "BlockManager",
    "make_writable": "copy_on_write",
    "choose_batch": "sample_batch",
    "choose_tokens": "sample_rows",
    "choose_all": "sample",
    "choose_bf16": "sample_bf16",
    "choose_f32": "sample_f32",
    "ChooseBatch": "SampleBatch",
    "Pending": "InFlight",
    "PendingChoices": "InFlight",
    "PendingIds": "in-flight ids",
    "Gate": "SharedExclusiveLock",
    "GaveUp": "RetryAborted",
    "Child": "GroupMember",
    "Children": "WorkerGroup",
    "Place": "DeviceAssignment",
    "plan_places": "plan_devices",
    "Telling": "OutputOptions",
    "Places": "ConnectionOptions",
    "Submitting": "SubmitOptions",
    "Reading": "InputOptions",
    "Decoding": "DecodingOptions",
    "Checked": "ValidationReport",
    "Written": "SubmitResult",
    "Repeated": "DuplicateFinder",
    "CustomIds": "DuplicateFinder",
    "telling": "output",
    "database_moment": "database_timestamp",
    "database_now": "database_epoch",
    "altered_worker": "faulty_worker",
    "DoesNotFit": "CapacityExceeded",
    "let_go": "drop",
}

#: Whole identifiers that are old in one part of the code only: they are good words elsewhere.
NAMES_IN: Mapping[str, Mapping[str, str]] = {
    "worker/engine/": {"choose": "sample", "pending": "in_flight", "_pending": "in_flight"},
    "worker/engine/cpu/": {
        "product": "matmul",
        "room": "workspace",
        "words": "VNNI groups",
        "num_words": "num_vnni_groups",
    },
    "worker/engine/cpu/csrc/gemm": {"after": "epilogue"},
    "worker/engine/cpu/linear.py": {"after": "epilogue"},
    "worker/engine/cpu/kernels.py": {"after": "epilogue"},
    "worker/engine/cpu/csrc/attention": {"largest": "row_max", "total": "row_sum"},
    "worker/engine/scheduling/block_manager.py": {"admit": "allocate", "extend": "append"},
    "tests/unit/worker/engine/scheduling/": {"room": "manager"},
    "worker/shared_exclusive.py": {"alone": "exclusive", "together": "shared"},
    "worker/worker_group.py": {"child": "member", "children": "members", "place": "assignment"},
    "benchmarks/": {"way": "feature", "ways": "features", "Way": "Feature", "WAYS": "FEATURES", "places": "databases"},
}

#: Names of files, without what follows the last dot.
FILES = {
    "uniform": "philox",
    "gate": "shared_exclusive",
    "patience": "outages",
    "vital_thread": "critical_thread",
    "children": "worker_group",
    "levers": "ablations",
    "ways": "features",
    "places": "databases",
    "growth": "scaling",
    "altered_worker": "faulty_worker",
    "numbers": "vecmath",
    "rows": "norm_rope",
    "tiles": "gemm_avx512",
    "panels": "weight_layout",
    "products": "gemm",
    "refusal": "admission",
}

#: What is said in comments, docstrings, messages and documentation.
PHRASES = {
    r"(?<!matrix )(?<!dot )\bproducts\b": "matmuls",
    r"\bpanels?\b": "packed weights",
    r"\bwhat follows\b": "epilogue",
    r"\bpast the caches\b": "non-temporal stores",
    r"\brun(s|ning)? ahead\b": "async scheduling",
    r"\bdepends? on (the|its|their|a) batch\b": "batch-invariant",
    r"\bquantis": "quantize",
    r"\bvital thread": "critical thread",
    r"\bpatience\b": "outages",
    r"\bfurnish": "carve",
    r"\bchoosers?\b": "sampler",
    r"\blevers?\b": "ablations",
    r"\bnudge": "notify",
    r"\blets? go\b": "drop",
    r"\bfor ever\b": "forever",
    r"\bmends?\b": "fix",
    r"\breckon": "compute",
    rf"\b({'|'.join(STEMS)})is(e[ds]?|ing|ation)\b": "-ize",
}

#: Names that libraries give.
FOREIGN = {"Panel", "rich_help_panel"}

#: Old words are spoken of here.
EXEMPT = ("docs/decisions/", "CHANGELOG.md", "tests/support/house/words.py")

_C_TOKEN = re.compile(
    r"(?P<prose>/\*.*?\*/|//[^\n]*)|(?P<string>\"(?:\\.|[^\"\\\n])*\")|(?P<name>[A-Za-z_]\w*)", re.DOTALL
)
_PARTS_OF_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_FOLDERS = ("models", "migrations", "worker", "producer", "tests", "benchmarks", "examples", "docs")


def old_words() -> list[str]:
    """Each old word that is left, as `file:line old → new`."""
    return [finding for path in _files() for finding in [*_old_file_name(path), *_old_words_in(path)]]


def _files() -> Iterator[Path]:
    paths = [
        ROOT / "Makefile",
        *ROOT.glob("*.md"),
        *ROOT.glob("*.yml"),
        *(path for folder in _FOLDERS for path in (ROOT / folder).rglob("*")),
    ]
    for path in sorted(paths):
        if (
            path.suffix in (".py", ".c", ".h", ".md", ".yml", "")
            and path.is_file()
            and not _name_of(path).startswith(EXEMPT)
        ):
            yield path


def _name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _old_file_name(path: Path) -> Iterator[str]:
    new = FILES.get(path.stem)
    if new and path.suffix != ".md":
        yield f"{_name_of(path)} file {path.stem} → {new}"


def _old_words_in(path: Path) -> Iterator[str]:
    """The old words of a file, line by line."""
    local = {
        old: new for start, names in NAMES_IN.items() if _name_of(path).startswith(start) for old, new in names.items()
    }
    for kind, line, text in _tokens(path):
        for old, new in _old_in_prose(text) if kind == "prose" else _old_in_name(text, local):
            yield f"{_name_of(path)}:{line} {old} → {new}"


def _old_in_name(name: str, local: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    new = NAMES.get(name) or local.get(name) or _new_of_part(name)
    if new and name not in FOREIGN:
        yield name, new


@cache
def _new_of_part(name: str) -> str | None:
    return next((PARTS[part.lower()] for part in _PARTS_OF_NAME.findall(name) if part.lower() in PARTS), None)


def _old_in_prose(text: str) -> Iterator[tuple[str, str]]:
    for pattern, new in PHRASES.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield match[0], new


def _tokens(path: Path) -> Iterator[tuple[str, int, str]]:
    """("name" or "prose", line, text) of what a file says."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _python_tokens(text)
    elif path.suffix == ".md":
        yield from _markdown_tokens(text)
    else:
        yield from _c_tokens(text)


def _python_tokens(text: str) -> Iterator[tuple[str, int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield "name", token.start[0], token.string
        elif token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type].endswith(
            "STRING_MIDDLE"
        ):
            for number, line in enumerate(token.string.splitlines(), token.start[0]):
                yield "prose", number, line


def _c_tokens(text: str) -> Iterator[tuple[str, int, str]]:
    for match in _C_TOKEN.finditer(text):
        first = text.count("\n", 0, match.start()) + 1
        if match["name"]:
            yield "name", first, match["name"]
        elif match["prose"]:
            for number, line in enumerate(match["prose"].splitlines(), first):
                yield "prose", number, line


def _markdown_tokens(text: str) -> Iterator[tuple[str, int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        yield "prose", number, re.sub(r"\]\([^)]*\)", "]", line)  # without the targets of links
        for span in re.findall(r"`([^`]+)`", line):
            for name in re.findall(r"[A-Za-z_]\w*", span):
                yield "name", number, name
