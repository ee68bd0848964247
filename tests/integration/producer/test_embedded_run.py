"""`producer run` as its user meets it: from a file to answers, with nothing running before or after."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from sqlalchemy import Engine, select

from models.schema.job import Job
from models.settings import Settings
from producer.errors import UsageError
from producer.runs import decoding
from producer.runs.embedded import LocalServices
from tests.conftest import ROOT, TOY_MODEL, Producer
from tests.support.table_rows import RUN_ID, insert_run

STUDY = ROOT / "examples" / "study.jsonl"

#: The `redis.aof` of Redis 6.2.14, rewritten once: a list `q` with "before" in a snapshot and "after" in a command.
AOF_OF_REDIS_6 = (
    b"REDIS0009\xfa\tredis-ver\x066.2.14\xfa\nredis-bits\xc0@\xfa\x05ctime\xc2\xd8\x08\x08k\xfa\x08used-mem\xc2HQ\x0e\x00"
    b"\xfa\x0caof-preamble\xc0\x01\xfe\x00\xfb\x01\x00\x0e\x01q\x01\x13\x13\x00\x00\x00\n\x00\x00\x00\x01\x00\x00\x06before\xff"
    b"\xff a\x90\xbf&\xc8|\x13*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$5\r\nafter\r\n"
)


def processes_with(text: str) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if process.pid != os.getpid() and text in " ".join(process.info["cmdline"] or ()):
            found.append(" ".join(process.info["cmdline"]))
    return found


def test_the_study_from_file_to_sql(producer: Producer, tmp_path: Path) -> None:
    home = tmp_path / "state"
    done = producer(
        "run", STUDY, "--model", TOY_MODEL, "--home", home, "--name", "study", "--seed", 3,
        "--strategy", "greedy,sample,nucleus,beam", "--temperature", "0.5,10", "--top-p", "0.9", "--num-beams", "4",
        "--max-new-tokens", "120", "--top-logprobs", "2",
    )  # fmt: skip
    assert done.stdout == ""
    assert "12 of 12 jobs succeeded, 0 failed" in done.stderr
    assert processes_with(str(home)) == []

    # The three queries that the summary suggests work as they are printed.
    queries = [line.split('"')[1] for line in done.stderr.splitlines() if line.startswith("  producer sql")]
    assert len(queries) == 3
    for query in queries:
        assert json.loads(producer("sql", query, "--home", home, "--format", "json").stdout)

    rows = json.loads(
        producer(
            "sql", "--home", home, "--format", "json",
            "select strategy, count(*) as n, avg(completion_tokens) as mean from job_results group by 1 order by 1",
        ).stdout
    )  # fmt: skip
    assert [(row["strategy"], row["n"]) for row in rows] == [("beam", 2), ("greedy", 2), ("nucleus", 4), ("sample", 4)]
    assert all(row["mean"] > 1 for row in rows)

    # Each token has its row; two alternatives were asked for.
    counts = (
        "select sum(completion_tokens), (select count(*) from token_traces), (select count(*) from {}) from results"
    )
    (answer,) = json.loads(
        producer("sql", counts.format("token_alternatives"), "--home", home, "--format", "json").stdout
    )
    tokens, traces, alternatives = answer.values()
    assert tokens == traces
    assert alternatives == 2 * traces

    # Results in the order of the input, as JSON lines and as CSV.
    records = [json.loads(line) for line in producer("results", "study", "--home", home).stdout.splitlines()]
    assert [record["custom_id"].split("#")[0] for record in records] == ["hedgehog"] * 6 + ["transfer"] * 6
    assert all(record["state"] == "succeeded" and record["text"] for record in records)
    assert records[0]["grid_point"] == {"strategy": "greedy"}
    output = tmp_path / "answers.csv"
    producer("results", "--home", home, "--format", "csv", "-o", output)
    with output.open(newline="") as file:  # an answer may hold a carriage return
        table = list(csv.DictReader(file))
    assert [row["text"] for row in table] == [record["text"] for record in records]

    # And what it says of itself.
    assert "study" in producer("status", "--home", home).stdout
    (status,) = json.loads(producer("status", "--home", home, "--json").stdout)
    assert (status["state"], status["succeeded"], status["completion_tokens"]) == ("finished", 12, tokens)
    assert "nothing to resume" in producer("resume", "--home", home).stderr
    assert "ok   database" in producer("doctor", "--home", home, "--model", TOY_MODEL).stdout


@pytest.mark.long
def test_prompts_of_long_tailed_lengths(producer: Producer, tmp_path: Path) -> None:
    rng = random.Random(12)
    lines: list[dict[str, Any]] = [
        {
            "custom_id": f"job-{number}",
            "prompt": f"Story {number}",
            "max_new_tokens": min(120, max(2, int(rng.lognormvariate(2.3, 0.8)))),
            "ignore_eos": True,
        }
        for number in range(400)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    producer("run", path, "--model", TOY_MODEL, "--home", tmp_path / "h", "--quiet", NOCTURNE_MAX_NUM_SEQS="32")
    query = (
        "select count(*) as n, count(distinct job_id) as jobs, count(distinct custom_id) as ids, "
        "sum(completion_tokens) as tokens, min(attempts) as least, max(attempts) as most from job_results"
    )
    (row,) = json.loads(producer("sql", query, "--home", tmp_path / "h", "--format", "json").stdout)
    tokens = sum(line["max_new_tokens"] for line in lines)
    assert row == {"n": 400, "jobs": 400, "ids": 400, "tokens": tokens, "least": 1, "most": 1}


def test_a_job_that_fails_is_reported_and_the_others_succeed(producer: Producer, tmp_path: Path) -> None:
    lines = [
        {"custom_id": "good", "prompt": "x", "max_new_tokens": 3},
        {"custom_id": "bad", "prompt": "x", "stop_token_ids": [1_000_000]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    done = producer("run", path, "--model", TOY_MODEL, "--home", tmp_path / "h", exit_code=1)
    assert "1 of 2 jobs succeeded, 1 failed" in done.stderr
    assert "failed: bad: token id 1000000 is not in the vocabulary of 1024" in done.stderr
    assert "exit" not in done.stderr
    status = producer("status", "--home", tmp_path / "h", "--json", ).stdout  # fmt: skip
    assert json.loads(status)[0]["failed"] == 1


def test_a_home_that_an_earlier_version_left_is_taken_over_by_prompts_of_a_pipe(
    producer: Producer, tmp_path: Path
) -> None:
    home = tmp_path / "h"
    home.mkdir()
    (home / "redis.aof").write_bytes(AOF_OF_REDIS_6)
    with LocalServices(Settings(home=home)), Redis(unix_socket_path=str(home / "redis.sock")) as client:
        assert client.lrange("q", 0, -1) == [b"after", b"before"]
    assert not (home / "redis.aof").exists()  # moved to where the server now keeps it
    done = producer("run", "-", "--model", TOY_MODEL, "--home", home, stdin='{"prompt": "Hi", "max_new_tokens": 3}\n')
    assert "1 of 1 jobs succeeded" in done.stderr


def test_a_redis_whose_disk_is_full_is_one_line(tmp_path: Path, sqlite_database: Engine) -> None:
    """It refuses every write, here because it misses a replica; the jobs stay in the database."""
    insert_run(sqlite_database, 3)
    settings = Settings(home=tmp_path / "h", database=sqlite_database.url.render_as_string(), model="toy")
    with LocalServices(settings) as local, Redis(unix_socket_path=str(tmp_path / "h" / "redis.sock")) as client:
        client.config_set("min-replicas-to-write", 1)
        with pytest.raises(UsageError, match="the embedded Redis takes nothing: NOREPLICAS .*redis.log"):
            local.purge_queue()
        local.interruption.outcome = "go on with: producer resume"
        with pytest.raises(UsageError, match="does not take the jobs: .*NOREPLICAS .*; when it does, go on with"):
            decoding._send_rest(local, sqlite_database, RUN_ID)
    with sqlite_database.connect() as connection:
        assert connection.execute(select(Job.sent_at)).scalars().all() == [None] * 3


def test_every_command_tells_programs_what_came_of_it(
    producer: Producer, tmp_path: Path, sqlite_database: Engine, broker: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"custom_id": "a", "prompt": "Hello"}\n{"custom_id": "b", "prompt": "You"}\n')
    model, home = ["--model", TOY_MODEL], ["--home", tmp_path / "h"]
    queue = ["--database", sqlite_database.url.render_as_string(), "--broker", broker]

    def told(*arguments: object, exit_code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(producer(*arguments, "--json", exit_code=exit_code).stdout)
        return found

    dry = told("submit", path, *model, "--dry-run", "--max-new-tokens", 4)
    assert (dry["jobs"], dry["max_new_tokens"], dry["first"]) == (
        2,
        8,
        {"custom_id": "a", "prompt": "Hello", "doubt": None},
    )
    done = told("run", path, *model, *home, "--max-new-tokens", 4)
    assert (done["num_jobs"], done["succeeded"], done["state"]) == (2, 2, "finished")
    assert told("resume", *home)["id"] == told("retry", *home)["id"] == done["id"]
    pruned = told("prune", "--older-than", "0.001s", *home)
    assert pruned == {
        "runs": 1,
        "jobs": 2,
        "trace_rows": done["completion_tokens"],
        "dead_letters": 0,
        "dry_run": False,
    }
    submitted = told("submit", path, *model, *queue, "--name", "night")
    assert (submitted["new"], submitted["already_there"]) == (2, 0)
    assert told("submit", path, *model, *queue, "--name", "night") == {**submitted, "new": 0, "already_there": 2}
    assert told("resume", submitted["id"], *queue) == {"id": submitted["id"], "sent": 0}
    assert told("cancel", "night", "a", *queue) == {"id": submitted["id"], "queued": 1, "running": 0}
    assert told("retry", "night", *queue) == {"id": submitted["id"], "sent": 1}
