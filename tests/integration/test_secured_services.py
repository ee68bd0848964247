"""The topology of docker-compose.yml without containers, locked: Redis with a password, TLS to it and to PostgreSQL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import make_url

from models.settings import Settings
from producer.runs.embedded import LocalServices
from tests.conftest import ROOT, TOY_MODEL, Producer
from tests.support.processes import RedisServer, WorkerProcess, command_line
from tests.support.tls import TlsProxy

PASSWORD = "correct-horse"
NUM_PROMPTS = 60

REDIS_AUTHORITY = "authority-of-redis.sock.pem"
POSTGRES_AUTHORITY = "authority-of-.s.PGSQL.5432.pem"


@pytest.fixture
def locked_redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder, "--appendonly", "yes", "--requirepass", PASSWORD) as server:
        yield server


@pytest.fixture
def connection(locked_redis: RedisServer, postgres_url: str, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The environment of every process: URLs with passwords are given so, never on a command line."""
    plain = make_url(postgres_url)
    postgres_socket = Path(str(plain.query["host"])) / ".s.PGSQL.5432"
    with (
        TlsProxy(locked_redis.socket, tmp_path) as redis,
        TlsProxy(postgres_socket, tmp_path, is_postgresql=True) as postgres,
    ):
        database = plain.set(
            host="localhost",
            port=postgres.port,
            password=PASSWORD,
            query={"sslmode": "verify-full", "sslrootcert": str(postgres.authority)},
        )
        yield {
            "NOCTURNE_BROKER": f"rediss://:{PASSWORD}@localhost:{redis.port}/0?ssl_ca_certs={redis.authority}",
            "NOCTURNE_DATABASE": database.render_as_string(hide_password=False),
            "NOCTURNE_MODEL": str(TOY_MODEL),
        }


def test_a_night_behind_passwords_and_tls(producer: Producer, connection: dict[str, Any], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join((ROOT / "examples" / "prompts.jsonl").read_text().splitlines()[:NUM_PROMPTS]))
    producer("db", "upgrade", **connection)
    with (
        WorkerProcess("--name", "first", cwd=tmp_path, **connection) as first,
        WorkerProcess("--name", "second", cwd=tmp_path, **connection) as second,
    ):
        sent = producer("submit", prompts, "--name", "night", **connection)
        producer("status", "--watch", **connection)
        doctor = producer("doctor", **connection)
        processes = [psutil.Process(worker.pid) for worker in (first, second)]
        command_lines = [command_line(p) for parent in processes for p in (parent, *parent.children(recursive=True))]
    query = "select count(*) as answers, count(distinct job_id) as jobs from job_results where state = 'succeeded'"
    (row,) = json.loads(producer("sql", query, "--format", "json", "--as-superuser", **connection).stdout)
    assert row["jobs"] == NUM_PROMPTS
    assert "first" in doctor.stdout and "second" in doctor.stdout
    told = [sent.stdout, sent.stderr, doctor.stdout, *first.lines, *second.lines, *command_lines]
    assert not [line for line in told if PASSWORD in line]


@pytest.mark.parametrize(
    ("setting", "old", "new", "complaint"),
    [
        ("NOCTURNE_BROKER", PASSWORD, "wrong-horse", "invalid username-password pair"),
        ("NOCTURNE_BROKER", REDIS_AUTHORITY, POSTGRES_AUTHORITY, "CERTIFICATE_VERIFY_FAILED"),
        ("NOCTURNE_DATABASE", POSTGRES_AUTHORITY, REDIS_AUTHORITY, "certificate verify failed"),
    ],
)
def test_a_refused_client_is_told_so_without_the_password(
    producer: Producer, connection: dict[str, Any], tmp_path: Path, setting: str, old: str, new: str, complaint: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello"}')
    producer("db", "upgrade", **connection)
    assert old in connection[setting]
    refused = producer("submit", prompts, exit_code=2, **{**connection, setting: connection[setting].replace(old, new)})
    assert complaint in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    for word in (PASSWORD, "wrong-horse"):
        assert word not in refused.stderr


def test_the_embedded_redis_and_what_is_stored_are_their_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with LocalServices(Settings(home=home)):
        assert os.stat(home).st_mode & 0o077 == 0
        assert os.stat(home / "redis.sock").st_mode & 0o077 == 0
