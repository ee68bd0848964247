"""The compose file and the image: no rights beyond need, no password in sight, every wheel by its hash."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from migrations.upgrade import upgrade
from models.database.connection import open_database
from tests.image_lock import BESIDE, FLOWER_LOCK, LOCK, MACHINES, PYTHON, wanted
from tests.support.postgres import PostgresServer
from tests.support.processes import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = (ROOT / "Dockerfile", ROOT / "docker" / "flower" / "Dockerfile")
DOCKERFILE = DOCKERFILES[0].read_text()
#: A tag that is a version, and the digest that decides.
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}")
MAKE_SECRETS, ROLES = ROOT / "docker" / "make-secrets.sh", ROOT / "docker" / "postgres" / "10-roles.sh"
SECRETS = "/run/secrets/"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_beyond_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service and "privileged" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert 0 < service["pids_limit"] <= 4096
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    assert service.get("network_mode") != "host" and service.get("user") not in ("root", "0")


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_built_here_or_named_by_its_version_and_its_digest(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        assert PINNED.fullmatch(service["image"]), service["image"]


def test_both_images_stand_on_one_base_with_its_digest() -> None:
    bases = [
        base
        for path in DOCKERFILES
        for base in re.findall(r"^FROM (\S+)", path.read_text(), flags=re.MULTILINE)
        if base != "base"
    ]
    assert len(bases) == len(DOCKERFILES) and len(set(bases)) == 1
    assert PINNED.fullmatch(bases[0]) and bases[0].startswith(f"python:{PYTHON}")


@pytest.mark.parametrize("name", SERVICES)
def test_no_password_is_in_an_environment_or_a_command(name: str) -> None:
    service = SERVICES[name]
    for variable, value in service.get("environment", {}).items():
        if re.search(r"PASS|SECRET|AUTH|BROKER|DATABASE|URL", variable) and not variable.endswith("ARGS"):
            assert variable.endswith("_FILE") and value.startswith(SECRETS), variable
    told = json.dumps(service)
    used = set(re.findall(rf"{SECRETS}(\w+)", told))
    assert used <= set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert not re.search(r"\$\{\w*PASSWORD", told)


def test_a_worker_may_write_and_execute_where_it_compiles_its_kernels() -> None:
    """Else decoding goes through slower operations; the worker says so, and nobody reads it."""
    cache = re.search(r"XDG_CACHE_HOME=(\S+)", DOCKERFILE)
    assert cache is not None
    for name in ("worker-cpu", "worker-gpu"):
        mounts = dict(mount.partition(":")[::2] for mount in SERVICES[name]["tmpfs"])
        assert {"exec", "mode=0700", "uid=1000"} <= set(mounts[cache[1]].split(","))
        assert "/tmp" in mounts
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "worker", "health"]
    caches = re.findall(r"(?:TRITON_CACHE_DIR|TORCHINDUCTOR_CACHE_DIR|CUDA_CACHE_PATH)=(\S+)", DOCKERFILE)
    assert len(caches) == 3 and all(path.startswith(f"{cache[1]}/") for path in caches)
    assert " gcc " in DOCKERFILE


def test_the_image_is_of_hashed_wheels_and_runs_without_root() -> None:
    runs = re.findall(r"^RUN ((?:.|\\\n)+)$", DOCKERFILE, flags=re.MULTILINE)
    installs = [shlex.split(command) for run in runs for command in run.split("&&") if "pip install" in command]
    assert len(installs) == 3
    hashed, torch, project = installs
    assert {"--require-hashes", "requirements-image.txt"} <= set(hashed)
    assert any("torch==" in part for part in torch)
    assert {"--no-deps", "--no-index", "--no-build-isolation", "."} <= set(project)
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, flags=re.MULTILINE)[-1] == "nocturne"


def test_flowers_image_is_of_hashed_wheels_and_runs_without_root() -> None:
    dockerfile = DOCKERFILES[1].read_text()
    (install,) = re.findall(r"^RUN (pip install .+)$", dockerfile, flags=re.MULTILINE)
    assert {"--require-hashes", "requirements.txt"} <= set(shlex.split(install))
    assert re.findall(r"^USER (\S+)$", dockerfile, flags=re.MULTILINE)[-1] == "flower"
    assert {"flower", "celery", "redis", "packaging"} <= set(locked(FLOWER_LOCK))


def locked(lock: Path = LOCK) -> dict[str, tuple[str, list[str]]]:
    """The version and the hashes of each package of the lock file."""
    found = {}
    for entry in re.split(r"\n(?=\w)", lock.read_text().split("\n", 2)[2]):
        first, *hashes = entry.replace("\\\n", "").split()
        name, version = first.split("==")
        found[normal(name)] = (version, [each.removeprefix("--hash=sha256:") for each in hashes])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", [LOCK, FLOWER_LOCK], ids=["ours", "flower"])
def test_a_lock_file_agrees_with_the_constraints(lock: Path) -> None:
    pins = {
        normal(name): version
        for name, version in re.findall(r"^([^#\s=]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    alone = set(locked(FLOWER_LOCK)) - set(locked()) if lock == FLOWER_LOCK else set()
    for name, (version, hashes) in locked(lock).items():
        assert name in alone or pins[name] == version, name
        assert 1 <= len(hashes) <= len(MACHINES) and all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes)
    assert "torch" not in locked()


def test_the_lock_file_has_all_that_the_project_needs() -> None:
    """As far as the packages that are installed here say what they need."""
    seen: set[str] = set()
    left = [Requirement(each) for each in wanted()]
    environment = {"python_version": "3.13", "python_full_version": "3.13.0", "sys_platform": "linux"}
    while left:
        requirement = left.pop()
        key = f"{normal(requirement.name)}[{','.join(sorted(requirement.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        try:
            needed = [Requirement(each) for each in requires(requirement.name) or []]
        except PackageNotFoundError:
            continue
        for each in needed:
            extras = requirement.extras or {""}
            if each.marker is None or any(each.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                left.append(each)
    names = {key.partition("[")[0] for key in seen}
    assert len(names) > 40 and names - {"torch"} <= set(locked()), names - set(locked())
    assert {normal(name) for name in BESIDE} <= set(locked())


def test_the_builder_gets_nothing_but_what_is_copied() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert allowed == copied
    assert not any(fnmatch(name, rule) for rule in allowed for name in (".env", "secrets", "data", ".git"))


def test_git_ignores_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # of a hook that runs the tests
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # a person may ignore more
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    for name in (".env", "secrets/redis_password", "data/prompts.jsonl", ".nocturne/nocturne.db"):
        done = subprocess.run(["git", "-C", tmp_path, "check-ignore", "--quiet", name])
        assert done.returncode == 0, name
    assert subprocess.run(["git", "-C", tmp_path, "check-ignore", "--quiet", ".env.example"]).returncode == 1


def make_secrets(folder: Path, **given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "PASSWORD" not in name}
    subprocess.run(["sh", MAKE_SECRETS, folder], check=True, capture_output=True, env={**kept, **given})
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_script_makes_every_secret_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    found = make_secrets(folder)
    assert set(COMPOSE["secrets"]) <= set(found)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for name, value in found.items() if name.endswith("_password"))
    assert folder.stat().st_mode & 0o077 == 0
    assert make_secrets(folder, REDIS_PASSWORD="another") == found


@pytest.mark.parametrize("password", ["plain", "a b/@:%#?&=+", 'quote"back\\slash$(id)`id`', "Grüße-~._"])
def test_any_password_of_before_is_taken(password: str, tmp_path: Path) -> None:
    found = make_secrets(tmp_path / "secrets", REDIS_PASSWORD=password, POSTGRES_PASSWORD=password)
    assert found["redis_password"] == found["owner_password"] == password
    assert unquote(urlsplit(found["broker_url"]).password or "") == password
    assert make_url(found["database_url"]).password == password
    assert json.loads(found["redis_exporter"]) == {"redis://redis:6379": password}


@pytest.fixture
def roles(postgres_process: PostgresServer, postgres_server: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """URLs of the roles that the image's script makes, run twice on a real server."""
    passwords = make_secrets(tmp_path / "secrets", POSTGRES_PASSWORD="o'quote\\:x")
    server = make_url(postgres_server)
    programs = postgres_process._server.bin_path
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": str(server.query["host"]),
        "POSTGRES_USER": server.username or "postgres", "SECRETS": str(tmp_path / "secrets"),
    }  # fmt: skip
    for _ in range(2):
        done = subprocess.run(["sh", ROLES], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    names = {"owner": "nocturne", "reader": "nocturne_reader", "monitor": "nocturne_monitor"}
    yield {
        role: server.set(username=name, password=passwords[f"{role}_password"], database="nocturne").render_as_string(
            hide_password=False
        )
        for role, name in names.items()
    }
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE nocturne WITH (FORCE)"))
        for name in names.values():
            connection.execute(text(f"DROP ROLE {name}"))
    admin.dispose()


def test_the_databases_roles_may_do_what_they_need_and_no_more(roles: dict[str, str]) -> None:
    owner = open_database(roles["owner"])
    upgrade(owner)
    with owner.connect() as connection:
        superusers = connection.execute(
            text(
                "SELECT rolname FROM pg_roles WHERE (rolsuper OR rolcreaterole OR rolcreatedb) AND rolname LIKE 'noct%'"
            )
        )
        assert list(superusers) == []
    owner.dispose()
    refused = ["COPY (SELECT 1) TO PROGRAM 'true'", "SELECT pg_read_file('/etc/passwd')", "CREATE ROLE other"]
    writing = [
        "DELETE FROM runs",
        "CREATE TABLE other (a int)",
        "SET default_transaction_read_only = off; DELETE FROM runs",
    ]
    for role, statements in {"owner": refused, "reader": [*refused, *writing]}.items():
        for statement in statements:
            engine = create_engine(roles[role])
            with engine.connect() as connection:
                assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0
                connection.rollback()
                with pytest.raises(DBAPIError, match="permission denied|read-only transaction"):
                    connection.execute(text(statement))
            engine.dispose()
