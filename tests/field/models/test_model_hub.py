"""Hub models without a network, with one that is mute, and from a small hub: the real client over real sockets."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint.download_progress import cached_bytes, progress_line
from tests.field.models.hub_server import COMMIT, OTHER_COMMIT, HubServer, MuteServer
from tests.support.model_folders import TOY_MODEL, edit_json, make_small_model
from tests.support.processes import HANG_SECONDS, clean_environment, run_producer

MODEL = "someone/Small-Model"
PROMPT = '{"prompt": "a", "max_new_tokens": 3}\n'

#: Calls a function of the product in a process of its own: the hub's client reads its environment when it is imported.
CALL = """
import sys
from models.checkpoint.small_files import CheckpointProblem
from producer.errors import UsageError
try:
    {call}
except (CheckpointProblem, UsageError) as problem:
    print(problem)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = make_small_model(tmp_path_factory.mktemp("hub") / "model", shard_size="20KB")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    (folder / "consolidated.safetensors").write_bytes(b"another copy of all weights")
    only_bin = tmp_path_factory.mktemp("hub") / "bin"
    shutil.copytree(folder, only_bin, ignore=shutil.ignore_patterns("*.safetensors*", "onnx"))
    (only_bin / "pytorch_model.bin").write_bytes(b"PK")
    quantized = tmp_path_factory.mktemp("hub") / "awq"
    shutil.copytree(folder, quantized)
    edit_json(quantized / "config.json", quantization_config={"quant_method": "hqq", "bits": 4})
    gguf = tmp_path_factory.mktemp("hub")
    (gguf / "small.Q4_K_M.gguf").write_bytes(b"GGUF")
    models = {MODEL: folder, "someone/bin": only_bin, "someone/hqq": quantized, "someone/gguf": gguf}
    with HubServer(models) as server:
        yield server


@pytest.fixture(autouse=True)
def _clean_hub(hub: HubServer) -> None:
    hub.failing.clear()
    hub.requests.clear()


def hub_environment(hub: HubServer, tmp_path: Path) -> dict[str, Any]:
    """The hub, with an empty cache, and time enough on a loaded machine."""
    home = str(tmp_path / "hf")
    timeouts = {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    return {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": home, **timeouts}


@pytest.fixture
def call(hub: HubServer, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs a statement with an empty cache of the hub; gives its exit code and what it printed."""

    def run(statement: str, **environment: str) -> tuple[int, str]:
        given = {name: value for name, value in (hub_environment(hub, tmp_path) | environment).items() if value}
        done = subprocess.run(
            [sys.executable, "-c", CALL.format(call=statement)],
            capture_output=True, text=True, timeout=HANG_SECONDS, env=clean_environment(**given), cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


def check(model: str = MODEL, revision: str | None = None) -> str:
    return f"from producer.runs.model_check import check_model; print(check_model({model!r}, revision={revision!r}))"


def test_small_files_are_fetched_and_then_found_without_the_hub(
    call: Callable[..., tuple[int, str]], hub: HubServer, tmp_path: Path
) -> None:
    assert call(check()) == (0, f"{MODEL}\n")
    (snapshot,) = (tmp_path / "hf" / "hub").glob("models--*/snapshots/*")
    assert snapshot.name == COMMIT
    names = {path.name for path in snapshot.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith(".safetensors") or name == "onnx"]
    hub.requests.clear()
    window = "from producer.model_files.folder import model_files; print(model_files('" + MODEL + "').context_window)"
    assert call(window) == (0, "256\n")
    assert call(check(), HF_HUB_OFFLINE="1") == (0, f"{MODEL}\n")
    assert not hub.requests


def test_a_run_fetches_the_weights_that_transformers_loads(hub: HubServer, tmp_path: Path) -> None:
    environment = hub_environment(hub, tmp_path)
    (tmp_path / "p.jsonl").write_text(PROMPT)
    done = run_producer(tmp_path, "run", "p.jsonl", "--model", MODEL, "--dtype", "float32", **environment)
    assert "1 of 1 jobs succeeded" in done.stderr
    fetched = [request for request in hub.requests if request.endswith(".safetensors")]
    assert fetched and not [request for request in fetched if "consolidated" in request]
    table = run_producer(tmp_path, "sql", "select weights_hash from environments", "--format", "csv").stdout
    assert table.split() == ["weights_hash", COMMIT]
    assert "Traceback" not in (tmp_path / ".nocturne" / "worker.log").read_text()


@pytest.mark.parametrize("statement", [check(revision="v2"), check(f"{MODEL}@v2")], ids=["apart", "in-the-name"])
def test_a_revision_is_fetched_by_its_name(
    statement: str, call: Callable[..., tuple[int, str]], hub: HubServer, tmp_path: Path
) -> None:
    hub.revisions["v2"] = OTHER_COMMIT
    hub.revisions[OTHER_COMMIT] = OTHER_COMMIT
    assert call(statement)[0] == 0
    (snapshot,) = (tmp_path / "hf" / "hub").glob("models--*/snapshots/*")
    assert snapshot.name == OTHER_COMMIT


def cached_revisions(home: Path, **commit_of: str) -> None:
    """The hub's cache with a snapshot for each revision of `MODEL`, which differ in their repetition penalty."""
    cache = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    for number, (revision, commit) in enumerate(commit_of.items(), 1):
        snapshot = cache / "snapshots" / commit
        shutil.copytree(TOY_MODEL, snapshot)
        edit_json(snapshot / "generation_config.json", repetition_penalty=1 + number / 4)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / revision).write_text(commit)


def test_a_run_takes_the_revision_it_names_from_the_cache(tmp_path: Path) -> None:
    """Offline, with two snapshots: its defaults and its weights are those of the one, in name and in commit."""
    cached_revisions(tmp_path / "hf", main=COMMIT, v2=OTHER_COMMIT)
    offline: dict[str, Any] = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = ["run", "--prompt", "Hi", "--max-new-tokens", 1, "--model", MODEL]
    shown = {
        revision: run_producer(tmp_path, *command, *option, "--dry-run", **offline).stdout
        for revision, option in {"main": [], "v2": ["--revision", "v2"]}.items()
    }
    assert "repetition_penalty 1.25" in shown["main"]
    assert "repetition_penalty 1.5" in shown["v2"]
    refused = run_producer(tmp_path, *command, "--revision", "v3", "--dry-run", exit_code=2, **offline)
    assert "v3" in refused.stderr and "Traceback" not in refused.stderr
    run_producer(tmp_path, *command, "--revision", "v2", "--dtype", "float32", **offline)
    query = "select runs.model, weights_hash from runs, environments"
    table = run_producer(tmp_path, "sql", query, "--format", "csv").stdout
    assert list(csv.reader(table.splitlines()))[1:] == [[f"{MODEL}@v2", OTHER_COMMIT]]


API = f"/api/models/{MODEL}"
FILE = f"/{MODEL}/resolve/"

#: Fault -> (model, revision, failing paths, parts of the sentence).
FAULTS: dict[str, tuple[str, str | None, dict[str, tuple[int, str]], list[str]]] = {
    "typo": ("someone/Small-Modle", None, {}, ["has no such model, or a private one; check the spelling", "HF_TOKEN"]),
    "gated": (MODEL, None, {FILE: (403, "GatedRepo")}, ["is gated; accept its terms at", MODEL, "HF_TOKEN"]),
    "gated-api": (MODEL, None, {API: (401, "GatedRepo")}, ["is gated; accept its terms at"]),
    "forbidden": (MODEL, None, {API: (403, "")}, ["refuses the access (403); log in"]),
    "revision": (MODEL, "v9", {}, ["has no revision 'v9'; give one of its branches"]),
    "broken": (MODEL, None, {API: (503, "")}, ["answers with the status 503; try again later"]),
    "no-such-name": ("a--b", None, {}, ["neither a folder nor a hub id"]),
    "only-bin": ("someone/bin", None, {}, ["no safetensors (found: ", "pytorch_model.bin", "give one that has"]),
    "gguf": ("someone/gguf", None, {}, ["has no config.json (it has small.Q4_K_M.gguf)"]),
    "hqq": ("someone/hqq", None, {}, ["quantized (hqq, 4 bits)", "take the unquantized model"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_hub_is_a_sentence(fault: str, call: Callable[..., tuple[int, str]], hub: HubServer) -> None:
    model, revision, failing, parts = FAULTS[fault]
    hub.failing.update(failing)
    code, told = call(check(model, revision))
    assert code == 2 and told.count("\n") == 1 and all(part in told for part in parts), told


def test_a_mute_hub_is_asked_once_for_two_seconds(call: Callable[..., tuple[int, str]]) -> None:
    with MuteServer() as mute:
        code, told = call(check(), HF_ENDPOINT=mute.url, HF_HUB_ETAG_TIMEOUT="")
    assert code == 2 and told.count("\n") == 1
    assert f"{mute.url} does not answer within 2 s; check the network" in told and "HF_HUB_ETAG_TIMEOUT=30" in told


def test_a_mute_hub_is_waited_for_as_long_as_asked(call: Callable[..., tuple[int, str]]) -> None:
    with MuteServer() as mute:
        assert "within 1 s" in call(check(), HF_ENDPOINT=mute.url, HF_HUB_ETAG_TIMEOUT="1")[1]


def test_a_wait_that_is_no_number_is_named(call: Callable[..., tuple[int, str]]) -> None:
    told = call(check(), HF_HUB_ETAG_TIMEOUT="0.1")
    assert told == (2, "HF_HUB_ETAG_TIMEOUT must be a whole number of seconds, got '0.1'\n")


def test_a_name_that_is_not_found_in_time_is_told(call: Callable[..., tuple[int, str]]) -> None:
    """A lookup of names has no timeout of its own."""
    slow = "import socket, time; socket.getaddrinfo = lambda *_, **__: time.sleep(60); "
    code, told = call(slow + check(), HF_ENDPOINT="http://hub.invalid", HF_HUB_ETAG_TIMEOUT="1")
    assert code == 2 and "http://hub.invalid does not answer within 1 s" in told


def test_a_refused_connection_is_told(call: Callable[..., tuple[int, str]]) -> None:
    code, told = call(check(), HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 2 and "http://127.0.0.1:9 cannot be reached (" in told and told.count("\n") == 1


def test_offline_asks_nobody(call: Callable[..., tuple[int, str]], hub: HubServer) -> None:
    code, told = call(check(), HF_HUB_OFFLINE="1")
    assert code == 2 and "HF_HUB_OFFLINE forbids asking it" in told and not hub.requests


def test_without_the_hub_the_small_files_are_nowhere(call: Callable[..., tuple[int, str]]) -> None:
    statement = f"from producer.model_files.folder import model_files; print(model_files({MODEL!r}))"
    assert call(statement, HF_ENDPOINT="http://127.0.0.1:9") == (0, "None\n")


def test_commands_write_nothing_for_a_model_that_the_hub_lacks(hub: HubServer, tmp_path: Path) -> None:
    environment = hub_environment(hub, tmp_path)
    (tmp_path / "p.jsonl").write_text(PROMPT)
    done = run_producer(tmp_path, "run", "p.jsonl", "--model", "no/such", exit_code=2, **environment)
    assert "unknown model 'no/such'" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / ".nocturne").exists()


def test_the_progress_counts_what_is_on_disk(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "whole").write_bytes(b"x" * 10_000)
    with (blobs / "part.incomplete").open("wb") as file:  # room for a gigabyte, of which nothing has come
        file.truncate(10**9)
    assert cached_bytes(tmp_path) == 10_000
    line = progress_line("a/b", 2 * 10**9, 8 * 10**9, 100.0)
    assert line == "downloading a/b: 2.00 of 8.00 GB, 20.0 MB/s, 5 min left"
    assert progress_line("a/b", 0, 0, 0.0) == "downloading a/b: 0.00 GB, 0.0 MB/s"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_long_download_shows_its_progress(is_terminal: bool, tmp_path: Path) -> None:
    """Lines in a log; on a terminal one line that is rewritten."""
    program = (
        "import time, pathlib, models.checkpoint.download_progress as p\n"
        "p.FIRST_LINE_SECONDS = p.LOG_SECONDS = p.TERMINAL_SECONDS = 0.01\n"
        "line_of, lines = p.progress_line, []\n"
        "p.progress_line = lambda *given: lines.append(line_of(*given)) or lines[-1]\n"
        "with p.showing_progress('a/b', pathlib.Path('.'), 10**9):\n"
        "    while len(lines) < 3: time.sleep(0.01)\n"
    )
    ours, theirs = os.openpty() if is_terminal else os.pipe()
    subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True, env=clean_environment(), cwd=tmp_path)
    told = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert told.count("downloading a/b: 0.00 of 1.00 GB") > 1 and told.count("downloaded a/b") == 1
    assert ("\r" in told.replace("\r\n", "\n")) is is_terminal
