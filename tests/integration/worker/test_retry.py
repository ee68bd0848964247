"""A job that is tried again, after the engine that had it was killed, has the same prompt and the same answer."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, update

from models.chat import prompt_hash
from models.database.outbox import send_outbox
from models.message import ChunkMessage
from models.params import GenerationParams
from models.schema.job import Job
from models.schema.result import Result
from models.schema.run import Run
from models.schema.trace import TokenTrace
from models.settings import Settings
from models.states import JobState, RunState
from tests.conftest import TOY_MODEL
from tests.support.processes import HANG_SECONDS, wait_until
from tests.support.table_rows import column_of, insert_run
from worker.engine.engine import Engine as DecodingEngine
from worker.engine.request import Request
from worker.runtime import Runtime

MESSAGES = [{"role": "user", "content": "Tell me about a hedgehog"}]
PARAMS = GenerationParams.model_validate({"strategy": "sample", "seed": 3, "max_new_tokens": 600, "ignore_eos": True})


def model_that_prints_the_time(folder: Path) -> Path:
    """The toy model with a template whose prompt changes with every microsecond."""
    model = Path(shutil.copytree(TOY_MODEL, folder / "model"))
    template = model / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %H:%M:%S.%f') }}\n" + template.read_text())
    return model


def test_a_job_whose_engine_was_killed_has_the_same_prompt_and_answer(sqlite_database: Engine, tmp_path: Path) -> None:
    model = model_that_prints_the_time(tmp_path)
    columns: dict[str, Any] = {"messages": MESSAGES, "prompt": None, "params": PARAMS.stored, "seed": 3}
    insert_run(sqlite_database, 1, strategy="sample", **columns)
    with sqlite_database.begin() as connection:
        connection.execute(update(Run).values(model=str(model)))
    settings = Settings(
        model=str(model), device="cpu", dtype="float32", worker_name="worker", num_threads=1, kv_memory=0.05,
        heartbeat_seconds=0.1, engine_timeout=HANG_SECONDS, grace_seconds=0.0,
    )  # fmt: skip
    with ThreadPoolExecutor(max_workers=4) as threads:

        def send(chunk: ChunkMessage) -> None:
            threads.submit(runtime.process, chunk)

        runtime = Runtime(settings, sqlite_database, send=send, queue_length=lambda: 1)
        runtime.start()
        try:
            (killed,) = active_children()
            send_outbox(sqlite_database, send)
            wait_until(lambda: column_of(sqlite_database, Job.state) == [JobState.RUNNING])
            killed.kill()
            wait_until(lambda: column_of(sqlite_database, Run.state) == [RunState.FINISHED])
        finally:
            runtime.stop_claiming()
            runtime.shut_down()
            runtime.close()
    (attempts,), (created_at,) = column_of(sqlite_database, Job.attempts), column_of(sqlite_database, Job.created_at)
    assert attempts == 2
    engine = DecodingEngine.load(str(model), device="cpu", dtype="float32", kv_memory=0.05)
    prompt_ids = engine.encode_chat(MESSAGES, created_at=created_at)
    (expected,) = engine.generate([Request(0, prompt_ids, PARAMS)])
    assert column_of(sqlite_database, Result.prompt_hash) == [prompt_hash(prompt_ids)]
    assert column_of(sqlite_database, Result.text) == [expected.completions[0].text]
    assert tuple(column_of(sqlite_database, TokenTrace.token_id)) == expected.completions[0].token_ids
