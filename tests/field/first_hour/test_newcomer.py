"""The first hour: interrupting, waiting, detaching, and what `status` and `doctor` say afterwards. Real processes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.database.connection import open_database
from models.entry_point import _prepare_output
from models.schema.run import Run
from models.settings import Settings
from producer.errors import UsageError
from producer.home import holder_of
from producer.options import OutputOptions
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.results.queries import run_progress
from producer.results.run_tables import progress_line
from producer.runs.detached import decode_detached
from producer.runs.device_check import check_device
from producer.runs.embedded import LocalServices
from producer.runs.interruption import Interruption
from producer.runs.writer import write
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import CommandProcess, wait_until

NOW = datetime(2026, 11, 26, tzinfo=UTC)
NUM_JOBS = 1_500
SLOW = {"NOCTURNE_NUM_THREADS": "1", "NOCTURNE_MAX_NUM_SEQS": "4", "NOCTURNE_HEARTBEAT_SECONDS": "0.2"}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = [
        {"custom_id": f"job-{n}", "prompt": f"Story {n}", "max_new_tokens": 150, "ignore_eos": True}
        for n in range(NUM_JOBS)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def left_processes(tmp_path: Path) -> list[psutil.Process]:
    """All that works in the test's folder: producers, their workers, engines and Redis servers."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(tmp_path):
                found.append(process)
        except psutil.Error:
            continue
    return found


def await_nothing_left(tmp_path: Path) -> None:
    """A process that was killed takes a moment to be gone."""
    wait_until(lambda: left_processes(tmp_path) == [])


def start_run(prompts: Path, *options: Any) -> CommandProcess:
    arguments = ["run", prompts, "--model", TOY_MODEL, *options]
    return CommandProcess("producer", arguments, prompts.parent, **SLOW)


def states(tmp_path: Path) -> dict[str, int]:
    database = open_database(f"sqlite:///{tmp_path / '.nocturne' / 'nocturne.db'}")
    try:
        with database.begin() as connection:
            rows = connection.exec_driver_sql("select state, count(*) from jobs group by 1").all()
    finally:
        database.dispose()
    return {str(state): int(count) for state, count in rows}


def await_state(tmp_path: Path, state: str) -> None:
    home = tmp_path / ".nocturne"
    wait_until(lambda: (holder := holder_of(home)) is not None and holder.run is not None)
    wait_until(lambda: states(tmp_path).get(state, 0) > 0)


def assert_left_in_order(tmp_path: Path, producer: Producer) -> None:
    """No process and no running job is left, and the way to go on is said."""
    await_nothing_left(tmp_path)
    assert states(tmp_path).get("running", 0) == 0 and states(tmp_path)["queued"] > 0
    (run,) = json.loads(producer("status", "--json").stdout)
    assert run["state"] in ("queued", "interrupted")
    shown = producer("status")
    assert f"go on with: producer resume {run['id']}" in shown.stderr and "running" not in shown.stdout.split("\n")[1]
    doctor = producer("doctor", "--model", TOY_MODEL, exit_code=1).stdout
    assert f"go on with: producer resume {run['id']}" in doctor and "worker start" not in doctor


def test_control_c_while_the_model_is_loaded(prompts: Path, tmp_path: Path, producer: Producer) -> None:
    with start_run(prompts) as run:
        await_state(tmp_path, "queued")
        wait_until(lambda: (tmp_path / ".nocturne" / "worker.log").exists())
        run.signal(signal.SIGINT)
        assert run.finish() == 130
    said = "".join(run.lines)
    assert "interrupted: running answers have 5 s to end; a second Ctrl-C ends at once" in said
    assert "goes on with the same command, or with: producer resume" in said
    assert_left_in_order(tmp_path, producer)


def test_a_second_control_c_ends_at_once_and_a_second_run_waits(
    prompts: Path, tmp_path: Path, producer: Producer
) -> None:
    with start_run(prompts, "--grace", 600) as run:
        await_state(tmp_path, "running")
        (shown,) = json.loads(producer("status", "--json").stdout)
        with start_run(prompts, "--name", "second") as second:
            assert f"waiting for process {run.pid}, run {shown['id']}" in second.read_until("waiting for")
            second.signal(signal.SIGTERM)
            assert second.finish() == 130 and "nothing was submitted" in "".join(second.lines)
        run.signal(signal.SIGINT)
        run.read_until("running answers have 600 s to end")
        run.signal(signal.SIGINT)
        assert run.finish() == 130
    assert "ending at once" in "".join(run.lines)
    assert_left_in_order(tmp_path, producer)


def test_a_second_control_c_is_told_wherever_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here right behind the notice of the first, before anything waits for the worker."""
    said: list[str] = []
    monkeypatch.setattr("producer.runs.interruption.say", said.append)
    worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
    with Interruption() as interruption, LocalServices(Settings(home=tmp_path / "h"), interruption) as local:
        os.kill(os.getpid(), signal.SIGINT)
        interruption.tell()
        os.kill(os.getpid(), signal.SIGINT)
        local._stop(worker, 600.0)
    assert worker.returncode is not None and said == ["interrupted, ending", "ending at once"]


def test_a_closed_terminal_and_a_killed_producer_leave_nothing(
    prompts: Path, tmp_path: Path, producer: Producer
) -> None:
    with start_run(prompts, "--grace", 0) as run:
        await_state(tmp_path, "succeeded")
        run.signal(signal.SIGHUP)
        assert run.finish() == 130
    assert_left_in_order(tmp_path, producer)
    with start_run(prompts) as run:
        await_state(tmp_path, "queued")
        redis = [process for process in left_processes(tmp_path) if "valkey" in process.name()]
        assert len(redis) == 1
        os.kill(run.pid, signal.SIGKILL)
        await_nothing_left(tmp_path)


def test_a_detached_run_is_watched_and_cancelled(prompts: Path, tmp_path: Path, producer: Producer) -> None:
    done = producer("run", prompts, "--model", TOY_MODEL, "--detach", **SLOW)
    run_id = done.stdout.strip()
    await_state(tmp_path, "succeeded")
    holder = holder_of(tmp_path / ".nocturne")
    assert holder is not None and holder.run == run_id and f"process {holder.pid}" in done.stderr
    shown = producer("status")
    assert f"process {holder.pid}, run {run_id} decodes here; its log is " in shown.stderr
    assert "run.log" in shown.stderr
    with CommandProcess("producer", ["resume"], tmp_path) as watching:
        watching.read_until(f"run {run_id} is decoded by process {holder.pid}; this watches it")
        producer("cancel", run_id)
        assert watching.finish() == 1
    said = "".join(watching.lines)
    assert " jobs succeeded, 0 failed, " in said and " cancelled, " in said
    await_nothing_left(tmp_path)
    assert f"run {run_id}: " in (tmp_path / ".nocturne" / "run.log").read_text()
    assert " cancelled, " in producer("status", run_id, exit_code=1).stdout + said


def test_control_c_while_answers_are_written(tmp_path: Path, producer: Producer) -> None:
    pipe = tmp_path / "answers.jsonl"
    os.mkfifo(pipe)
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "Once", "max_new_tokens": 1, "padding": "x" * 1_000}))
    arguments = ["run", "one.jsonl", "--model", TOY_MODEL, "--repeat", 200, "-o", pipe]
    with CommandProcess("producer", arguments, tmp_path) as run:
        reader = os.open(pipe, os.O_RDONLY)  # waits for the writer, which then waits for more room
        run.signal(signal.SIGINT)
        assert run.finish() == 130
        os.close(reader)
    (shown,) = json.loads(producer("status", "--json").stdout)
    way = f"interrupted; run {shown['id']} has ended; its answers: producer results {shown['id']} -o FILE"
    assert way in "".join(run.lines)
    await_nothing_left(tmp_path)


def test_control_c_while_a_run_is_detached(prompts: Path, tmp_path: Path, producer: Producer) -> None:
    producer("db", "upgrade")
    journal = tmp_path / ".nocturne" / "nocturne.db-wal"
    with start_run(prompts, "--detach", "--repeat", 20) as run:
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0)  # the transaction has begun
        run.signal(signal.SIGINT)
        assert run.finish() == 130
    stored = json.loads(producer("status", "--json").stdout)
    outcome = f"run {stored[0]['id']} goes on with the same command" if stored else "nothing was submitted"
    assert f"interrupted; {outcome}" in "".join(run.lines)
    await_nothing_left(tmp_path)


def test_a_run_is_stored_or_not_and_the_interrupted_command_knows(tmp_path: Path, sqlite_database: Engine) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "x"}')
    submission = Submission(path, "m", Grid({}))
    report = check(submission)
    stored = []
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt), interruption.at_once():

        def interrupt() -> None:
            interruption.hold()
            os.kill(os.getpid(), signal.SIGINT)

        stored.append(write(submission, report, sqlite_database, before_commit=interrupt).run_id)
    assert run_progress(sqlite_database, stored[0]).num_jobs == 1


def test_a_process_in_the_background_ends_with_the_command_that_waits_for_it(
    tmp_path: Path, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer("db", "upgrade")
    monkeypatch.chdir(tmp_path)
    with Interruption() as interruption:
        interruption.num_signals = 1
        with pytest.raises(KeyboardInterrupt):
            decode_detached(Settings(), "a-run", OutputOptions(), interruption)
    assert left_processes(tmp_path) == [psutil.Process()]


def test_prompts_of_the_command_line_are_answered_on_the_screen(producer: Producer, tmp_path: Path) -> None:
    options = ["--model", TOY_MODEL, "--max-new-tokens", 8]
    done = producer("run", "-p", "Once upon a time", "--prompt", "The end", *options, "-o", "answers.csv")
    parts = done.stdout.split("── prompt-")
    assert parts[0] == "" and sorted(part.split("\n")[0] for part in parts[1:]) == ["1", "2"]
    rows = [json.loads(line) for line in producer("results").stdout.splitlines()]
    assert sorted(part.split("\n", 1)[1] for part in parts[1:]) == sorted(f"{row['text']}\n" for row in rows)
    with (tmp_path / "answers.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [row["text"] for row in rows]
    assert "2 of 2 jobs succeeded, 0 failed" in done.stderr and "Try:" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a FILE or --prompt TEXT"),
        (["a.jsonl", "-p", "x"], "give a FILE or --prompt TEXT, not both"),
        (["-p", ""], "--prompt:1: prompt is empty"),
        (["-p", "x", "--device", "cuda:0"], "this machine has no GPU"),
        (["-p", "x", "--detach", "--broker", "redis://127.0.0.1:1/0"], "--detach starts its own Redis"),
        (["-p", "x", "--grace", "-1"], "--grace"),
        (["-p", "x", "-o", "answers.xlsx"], "-o answers.xlsx: end the name in .jsonl"),
        (["-p", "x", "-o", "nowhere/answers.csv"], "nowhere is not a folder that can be written"),
    ],
)
def test_wrong_use_of_run_writes_nothing(
    producer: Producer, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "cuda:0" in arguments and any(Path("/dev").glob("nvidia*")):
        pytest.skip("a machine with a GPU")
    assert message in producer("run", *arguments, "--model", TOY_MODEL, exit_code=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.runs.device_check.DEVICE_FILES", ("no-such-device*",))
    monkeypatch.setattr("producer.runs.device_check.DRIVER_LIBRARY", "libno-such-driver.so.1")
    for device in ("cuda:0", "cpu,cuda:1", "cuda:0+cuda:1"):
        with pytest.raises(UsageError, match="has no GPU"):
            check_device(device)
    for device in ("auto", "cpu", "cpu,cpu"):
        check_device(device)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id,text,topic\nseven,one,a\n8,two,b\n9,three,c\n"),
        ("t.tsv", "id\ttext\ttopic\nseven\tone\ta\n8\ttwo\tb\n9\tthree\tc\n"),
        ("t.jsonl", '{"id": "seven", "text": "one"}\n{"id": 8, "text": "two"}\n{"id": 9.0, "text": "three"}\n'),
    ],
)
def test_ids_of_a_column_and_a_limit(producer: Producer, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    options = ["--prompt-column", "text", "--id-column", "id", "--model", TOY_MODEL, "--dry-run", "--json"]
    dry = json.loads(producer("run", name, *options, "--limit", 2).stdout)
    assert dry["jobs"] == 2, dry
    assert dry["first"]["custom_id"] == "seven", dry
    options[3] = "no"
    message = "no is missing, and --id-column names it" if name.endswith("jsonl") else "--id-column names 'no'"
    assert message in producer("run", name, *options, exit_code=2).stderr


def test_a_row_without_its_id_is_named(producer: Producer, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,prompt\n1,one\n,two\n")
    done = producer("run", "t.csv", "--id-column", "id", "--model", TOY_MODEL, exit_code=2)
    assert "t.csv:3: id is missing, and --id-column names it" in done.stderr


def test_cancelled_and_expired_jobs_are_in_every_count(
    producer: Producer, sqlite_database: Engine, sqlite_url: str
) -> None:
    counts = {"num_succeeded": 1, "num_failed": 2, "num_cancelled": 3, "num_expired": 4}
    run = Run(
        id="r", model="m", state="running", source="f", content_hash="h", seed=1, num_jobs=11, completion_tokens=0,
        created_at=NOW, **counts,
    )  # fmt: skip
    with Session(sqlite_database) as session:
        session.add(run)
        session.commit()
    line = progress_line(run_progress(sqlite_database, "r"), "ETA unknown")
    assert line.startswith("10 of 11 jobs done, 2 failed, 3 cancelled, 4 expired, 0 running")
    shown = producer("status", "--database", sqlite_url).stdout.splitlines()
    assert dict(zip(shown[0].split(), shown[1].split(), strict=False))["run"] == "r"
    head = [word for word in shown[0].split() if word != "name"]
    row = dict(zip(head, shown[1].split(), strict=True))
    assert (row["succeeded"], row["failed"], row["cancelled"], row["expired"]) == ("1", "2", "3", "4")
    assert producer("status", "r", "--database", sqlite_url, exit_code=1).stdout


def test_an_output_of_another_encoding_has_every_text(producer: Producer) -> None:
    dry = ["run", "-p", "Grüße 🦔", "--model", TOY_MODEL, "--dry-run"]
    assert producer(*dry, PYTHONIOENCODING="ascii").stdout.splitlines()[-1] == "Grüße 🦔"


@pytest.mark.parametrize(
    ("is_terminal", "encoding", "written"),
    [
        (True, "latin-1", "Grüße ".encode("latin-1") + b"\\U0001f994\n"),
        (True, "ascii", b"Gr\\xfc\\xdfe \\U0001f994\n"),
        (True, "utf-8", "Grüße 🦔\n".encode()),
        (False, "latin-1", "Grüße 🦔\n".encode()),
        (False, "ascii", "Grüße 🦔\n".encode()),
        (False, "utf-8", "Grüße 🦔\n".encode()),
    ],
)
def test_a_terminal_shows_escapes_and_a_pipe_gets_utf_8(
    is_terminal: bool, encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(file, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdout", file)
    _prepare_output()
    print("Grüße 🦔", file=file, flush=True)
    assert file.buffer.getvalue() == written
