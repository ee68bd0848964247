"""Real parts for the tests: a Redis server (Valkey), a PostgreSQL server, the toy model, the commands as processes."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from worker.engine.cpu.openmp import let_waiting_threads_sleep

gc.disable()  # until all tests are collected: modules are no garbage
let_waiting_threads_sleep()  # before torch is imported: the tests share their processors
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a script; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup; these processes go on without it, children do not
    signal.signal(signal.SIGHUP, lambda *_: None)
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run here without a GPU

#: Variables of a person's shell or of a CI that change what libraries print, whom they ask, and by which way.
PERSONAL = re.compile(
    r"NO_COLOR|FORCE_COLOR|CLICOLOR.*|PY_COLORS|GITHUB_ACTIONS|TTY_.*|TERMINAL_WIDTH|COLUMNS|LINES|PAGER|LESS"
    r"|PYTHON(WARNINGS|IOENCODING|DEVMODE)|(HTTPS?|ALL|NO)_PROXY|PG[A-Z]+|(HF|HUGGING_?FACE|TRANSFORMERS)_.*",
    re.IGNORECASE,
)
for name in filter(PERSONAL.fullmatch, list(os.environ)):
    del os.environ[name]
os.umask(0o022)  # some have 002: files of settings that others may write are refused

import torch  # noqa: E402
from sqlalchemy import Engine  # noqa: E402

from migrations.upgrade import upgrade  # noqa: E402
from models.database.connection import open_database  # noqa: E402
from tests.support.kernels import HAS_COMPILER  # noqa: E402
from tests.support.postgres import PostgresServer, new_postgres_database, running_postgres  # noqa: E402
from tests.support.processes import RedisServer, run_producer  # noqa: E402
from worker.engine.cpu.onednn_linear import keep_onednn_from_amx  # noqa: E402

if not HAS_COMPILER:
    keep_onednn_from_amx()  # before the first matmul of any test; an engine process does so at its start

# No test fails because the machine is busy.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

ROOT = Path(__file__).parent.parent

#: Folders and files of few long tests. They come first, so that no process is left alone with one at the end.
LONG_FIRST = (
    "tests/nights/connections/test_outages.py",  # its tests wait, and leave their process's share to others
    "tests/faults",
    "tests/field/first_hour",
    "tests/integration/producer/test_embedded_run.py",
    "tests/integration/producer/test_worker_options.py",
    "tests/integration/test_",
    "tests/integration/worker",
    "tests/integration/producer",
    "tests/nights",
    "tests/field/models",
    "tests/field/test_",
    "tests/integration",
)
TOY_MODEL = ROOT / "examples" / "tiny" / "model"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files: those of the longest tests first."""

    def rank(item: pytest.Item) -> int:
        return next((place for place, prefix in enumerate(LONG_FIRST) if item.nodeid.startswith(prefix)), 99)

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Leaves modules and tests out of every later search for garbage: it took a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two torch threads, for results that must not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _alone_on_a_small_machine() -> None:
    """No model hub, no settings, and one thread: several test processes and their engines share the machine."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in [name for name in os.environ if name.startswith("NOCTURNE_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def _own_import_path() -> Iterator[None]:
    """A test that runs the `worker` command in this process leaves no trace of it for the processes of others."""
    names = ("PYTHONPATH", "PYTHONSAFEPATH")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="session")
def toy_model() -> str:
    return str(TOY_MODEL)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server of the test session; a test that wants it for itself flushes it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def broker(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.client().flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_process() -> Iterator[PostgresServer]:
    """The PostgreSQL server of the test session."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(postgres_process: PostgresServer) -> str:
    """The URL of that server."""
    return postgres_process.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database."""
    with new_postgres_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'nocturne.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine for an empty database of each kind."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    engine = open_database(request.getfixturevalue(fixture))
    yield engine
    engine.dispose()


@pytest.fixture
def database(empty_database: Engine) -> Engine:
    """An engine for a database of each kind with the schema in it."""
    upgrade(empty_database)
    return empty_database


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Engine]:
    engine = open_database(sqlite_url)
    upgrade(engine)
    yield engine
    engine.dispose()


Producer = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def producer(tmp_path: Path) -> Producer:
    """Runs the `producer` command in the test's own folder."""
    return partial(run_producer, tmp_path)
