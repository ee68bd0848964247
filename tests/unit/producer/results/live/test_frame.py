"""Frames of the live view are golden, at three widths; none is wider, and the states add up to all jobs.

With WRITE_FRAMES=1 the stored frames are written anew: look at the difference.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from producer.results.live.frame import STATES, eta_text, frame
from producer.results.live.snapshot import Snapshot, WorkerState
from producer.results.live.top import Top, top_frame
from producer.results.queries import RunProgress

GOLDEN = Path(__file__).parent / "frames"
WIDTHS = (40, 80, 120)

PROGRESS = RunProgress(
    id="20261127-011033-62988a", name="study", model="Qwen/Qwen2-0.5B", state="running", source="study.jsonl",
    created_at=datetime(2026, 11, 27, 1, 10, tzinfo=UTC), finished_at=None, num_jobs=12_600, queued=8_224,
    running=1_005, succeeded=3_300, failed=8, cancelled=63, expired=0, completion_tokens=1_234_567,
    tokens_per_second=1234.4, mean_running=63.5, num_workers=1, max_running=None,
)  # fmt: skip
WORKER = WorkerState("local", "cpu", "Qwen/Qwen2-0.5B", 1234.4, 63.5, 64)
ANSWER = 'named Rosa.\n"Hello, Rosa!" said Rosa with a smile. ' + "Together they looked behind every bush. " * 4
RUNNING = Snapshot(
    PROGRESS, elapsed=754.2, seconds_left=3690.0, mean_tokens_per_second=1180.2, workers=(WORKER,),
    newest=("story-0042", ANSWER),
    errors=(("story-0017", "PromptTooLong: the prompt has 40,960 tokens, and the model's window 32,768"),),
)  # fmt: skip
SUBMITTED = Snapshot(
    replace(
        PROGRESS, state="queued", queued=12_600, running=0, succeeded=0, failed=0, cancelled=0, tokens_per_second=0.0
    ),
    elapsed=4.0,
)
CLUSTER = [
    replace(WORKER, name=f"gpu-host-{number}", device=f"cuda:{number}", is_draining=number == 1) for number in range(8)
]
SNAPSHOTS = {
    "silent": replace(RUNNING, silence=83.0),
    "loading": replace(SUBMITTED, is_loading=True),
    "unserved": replace(SUBMITTED, progress=replace(SUBMITTED.progress, name=None)),
    "running": RUNNING,
    "cluster": replace(RUNNING, workers=tuple(CLUSTER), newest=None, errors=()),
    "paused": replace(RUNNING, progress=replace(PROGRESS, state="paused", running=0, queued=9_229), errors=()),
    "finished": replace(
        RUNNING,
        progress=replace(
            PROGRESS, state="finished", queued=0, running=0, succeeded=12_500, expired=29, finished_at=datetime.now(UTC)
        ),
        elapsed=4444.0,
    ),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_frames(name: str) -> None:
    shown = ""
    for width in WIDTHS:
        lines = [line.plain.rstrip() for line in frame(SNAPSHOTS[name], width)]
        shown += "\n".join([f"{width:═>{width}}", *lines, ""])
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_FRAMES"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


TOP = Top(tuple(CLUSTER[:2]), (PROGRESS, SNAPSHOTS["finished"].progress))


@pytest.mark.parametrize("width", [20, 30, *WIDTHS])
def test_all_workers_and_runs(width: int) -> None:
    lines = [line.plain for line in top_frame(TOP, width)]
    assert all(line.cell_len <= width for line in top_frame(TOP, width))
    if width == 40:
        assert lines == [
            "2 workers · 1 runs unfinished · 2,469 t…", "",
            "worker      tokens/s  running  device", "gpu-host-0  1,234     64/64    cuda:0",
            "gpu-host-1  1,234     64/64    cuda:1", "",
            "run                     state     done", "20261127-011033-62988a  running   27%",
            "20261127-011033-62988a  finished  100%",
        ]  # fmt: skip


COUNTS = st.fixed_dictionaries({state: st.integers(0, 10**6) for state in STATES})
TEXTS = st.text("a 猫é\n\x1b[", max_size=300)


def test_a_bar_without_room_has_a_line_of_its_own() -> None:
    many = replace(PROGRESS, num_jobs=10**9, queued=10**9 - 1_005, succeeded=0, failed=0, cancelled=0)
    lines = frame(replace(RUNNING, progress=many, silence=36_000.0), 60)
    assert all(line.cell_len <= 60 for line in lines)
    assert any(set(line.plain) == {"─"} for line in lines)


@example(counts=dict.fromkeys(STATES, 0), texts=("[[[猫", "[" * 14 + "\x1b" * 4 + "猫"), num_workers=0, width=46)
@given(counts=COUNTS, texts=st.tuples(TEXTS, TEXTS), num_workers=st.integers(0, 9), width=st.integers(20, 130))
def test_no_line_is_wider_and_the_states_add_up(
    counts: dict[str, Any], texts: tuple[str, str], num_workers: int, width: int
) -> None:
    progress = replace(PROGRESS, num_jobs=sum(counts.values()), name=texts[1] or None, **counts)
    workers = tuple(replace(WORKER, name=f"{texts[1]}{number}") for number in range(num_workers))
    snapshot = replace(RUNNING, progress=progress, workers=workers, newest=texts, errors=(texts,))
    lines = frame(snapshot, width)
    assert all(line.cell_len <= width for line in lines)
    assert all(character.isprintable() for line in lines for character in line.plain)
    words = "|".join(word for word, _ in STATES.values())
    told = re.findall(rf"([\d,]+) (?:{words})(?: ·|$)", "\n".join(line.plain for line in lines), re.MULTILINE)
    assert width < 40 or sum(int(number.replace(",", "")) for number in told) == progress.num_jobs


def test_the_time_that_is_left_in_words() -> None:
    words = {name: eta_text(snapshot) for name, snapshot in SNAPSHOTS.items()}
    assert words["loading"] == "loading the model" and words["unserved"] == "no ETA yet"
    assert words["running"] == "ETA 1:01:30" and words["finished"] == "done"
