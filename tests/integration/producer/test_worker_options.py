"""The worker's options of `run`, `resume` and `retry`: each reaches the worker that decodes here, bad ones nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import TOY_MODEL, Producer
from tests.support.kernels import HAS_COMPILER
from tests.support.processes import HANG_SECONDS, CommandProcess, command_line, wait_until


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Story {number}", "max_new_tokens": 5} for number in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def rows(producer: Producer, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(producer("sql", query, "--format", "json").stdout)
    return found


def settings_of_children(pid: int) -> dict[str, str]:
    """The settings in the environments of all that a process has started."""
    found: dict[str, str] = {}
    for child in psutil.Process(pid).children(recursive=True):
        try:
            found |= {name: value for name, value in child.environ().items() if name.startswith("NOCTURNE_")}
        except psutil.Error:
            continue
    return found


def test_each_option_reaches_the_engine_of_a_run_and_of_a_retry(
    producer: Producer, prompts: Path, tmp_path: Path
) -> None:
    with prompts.open("a") as file:
        file.write("\n" + json.dumps({"prompt": "x", "stop_token_ids": [1_000_000]}))  # fails, so that one can retry
    options = ["--device", "cpu", "--dtype", "bfloat16", "--max-num-seqs", 3, "--kv-memory", 0.05, "--deterministic"]
    options += ["--quantize", "int8"] if HAS_COMPILER else []
    with CommandProcess("producer", ["run", prompts, "--model", TOY_MODEL, *options], tmp_path) as run:
        wait_until(lambda: settings_of_children(run.pid).get("NOCTURNE_DETERMINISTIC") == "True")
        assert run.finish() == 1, "".join(run.lines)
    (worker,) = rows(producer, "select device, max_num_seqs from workers")
    assert worker == {"device": "cpu", "max_num_seqs": 3}
    of_worker = "environments where id = (select environment_id from workers)"
    (environment,) = rows(producer, f"select dtype, device, attention from {of_worker}")
    assert (environment["dtype"], environment["device"]) == ("bfloat16", "cpu")
    assert ("int8" in environment["attention"]) == HAS_COMPILER

    producer("retry", "--max-num-seqs", 5, "--quiet", exit_code=1)
    assert rows(producer, "select max_num_seqs from workers") == [{"max_num_seqs": 5}]


def test_several_devices_decode_one_run(producer: Producer, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"Story {number}", "max_new_tokens": 40, "ignore_eos": True} for number in range(300)]
    path.write_text("\n".join(map(json.dumps, lines)))
    options = ["--model", TOY_MODEL, "--device", "cpu,cpu", "--quiet"]
    with CommandProcess("producer", ["run", path, *options], tmp_path, NOCTURNE_CONCURRENCY="1") as run:
        # A worker holds one of the run's ten chunks at a time, and the first waits for the second with its engine.
        log = tmp_path / ".nocturne" / "worker.log"
        wait_until(lambda: log.exists() and " serves " in log.read_text())
        first = [each for each in engines_of(run.pid) if f"{worker_name(each)} serves " in log.read_text()]
        for engine in first:
            engine.suspend()
        wait_until(lambda: log.read_text().count(" serves ") == 2)
        for engine in first:
            engine.resume()
        assert run.finish() == 0, "".join(run.lines)
    assert rows(producer, "select state, count(*) as n from jobs group by 1") == [{"state": "succeeded", "n": 300}]
    assert len(rows(producer, "select distinct worker from jobs")) == 2


def engines_of(producer_pid: int) -> list[psutil.Process]:
    below = psutil.Process(producer_pid).children(recursive=True)
    return [process for process in below if "spawn_main" in command_line(process)]


def worker_name(engine: psutil.Process) -> str:
    return str(engine.environ()["NOCTURNE_WORKER_NAME"])


@pytest.mark.long
def test_several_workers_end_with_a_producer_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([json.dumps({"prompt": "x", "max_new_tokens": 100_000, "ignore_eos": True})] * 2))
    arguments = ["run", path, "--model", TOY_MODEL, "--device", "cpu,cpu"]
    with CommandProcess("producer", arguments, tmp_path, NOCTURNE_GRACE_SECONDS="0") as run:
        log = tmp_path / ".nocturne" / "worker.log"
        wait_until(lambda: log.exists() and log.read_text().count(" serves ") == 2)
        started = psutil.Process(run.pid).children(recursive=True)
        workers = [child for child in started if "worker" in child.cmdline()]
        assert len(workers) == 3
        run.process.kill()
        psutil.wait_procs(workers, timeout=HANG_SECONDS)
        assert not [worker for worker in workers if worker.is_running()]
        for server in started:
            if server.is_running():
                server.kill()


def test_memory_that_holds_nothing_is_reported_by_the_engine(producer: Producer, prompts: Path) -> None:
    done = producer("run", prompts, "--model", TOY_MODEL, "--kv-memory", "0.000000001", exit_code=2)
    assert "raise --kv-memory" in done.stderr


@pytest.mark.parametrize("command", [["run", "prompts.jsonl", "--model", TOY_MODEL], ["resume"], ["retry"]])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], "--device: must be auto, cpu, cuda:0 or a list of devices, got 'gpu'"),
        (["--dtype", "float8"], "--dtype: input should be 'auto', 'bfloat16', 'float16' or 'float32', got 'float8'"),
        (["--quantize", "int4"], "--quantize: input should be 'none' or 'int8', got 'int4'"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
        (["--kv-memory", "0"], "--kv-memory: input should be greater than 0, got 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_values_are_refused_before_anything_is_written(
    producer: Producer, prompts: Path, tmp_path: Path, command: list[str], options: list[str], message: str
) -> None:
    assert message in producer(*command, *options, exit_code=2).stderr
    assert list(tmp_path.iterdir()) == [prompts]


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_with_a_broker_no_worker_is_started_that_could_take_them(
    producer: Producer, tmp_path: Path, command: str, broker: str
) -> None:
    done = producer(command, "--broker", broker, "--max-num-seqs", 5, exit_code=2)
    assert "--max-num-seqs is an option of the worker that decodes here" in done.stderr
    assert list(tmp_path.iterdir()) == []
