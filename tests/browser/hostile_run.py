"""Rows of a run that has every kind of answer: equal ones, beams, chats, failures, hostile texts and names."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, update

from models.params import GenerationParams
from models.schema.job import Job
from models.schema.run import Run
from models.states import FinishReason
from tests.support.table_rows import RUN_ID, insert_run
from worker.engine.request import Completion, Hypothesis, RequestOutput, Trace
from worker.storage.job_store import FinishedJob, JobStore

HOSTILE = '</script><script>document.title="taken"</script><img src=x onerror="document.title=1">\x1b[2J\u202e&amp;'

#: A whole number that JavaScript rounds.
LARGE = 2**60 + 1

#: Words without a place to break them at.
LONG = "x" * 180

PARAMS: tuple[dict[str, Any], ...] = (
    {"strategy": "greedy"},
    {"strategy": "nucleus", "temperature": 0.5, "top_p": 0.9},
    {"strategy": "nucleus", "temperature": 1.0, "top_p": 0.9},
    {"strategy": "nucleus", "temperature": 0.5, "top_p": 0.5},
    {"strategy": "nucleus", "temperature": 1.0, "top_p": 0.5},
    {"strategy": "beam", "num_beams": 4},
)

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Hi {HOSTILE}"}]


def fill(database: Engine) -> None:
    """Two runs: the first is answered but for two jobs, the second differs from it."""
    _answer_run(database, RUN_ID, num_failed=2)
    _answer_run(database, "later", num_failed=0)
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == RUN_ID).values(name=f"night {HOSTILE}"))


def _answer_run(database: Engine, run_id: str, num_failed: int) -> None:
    job_ids = insert_run(database, 4 * len(PARAMS), run_id=run_id)
    with database.begin() as connection:
        for number, job_id in enumerate(job_ids):
            connection.execute(update(Job).where(Job.id == job_id).values(_job(number)))
    store = JobStore(database, "worker", 30.0)
    claims = store.claim(job_ids)
    answered = claims[: len(claims) - num_failed]
    store.commit([FinishedJob(claim, _output(number, claim.job_id, run_id)) for number, claim in enumerate(answered)])
    for claim in claims[len(answered) :]:
        store.fail(claim, "EngineDied", f"the engine died of {HOSTILE} {LONG * 3}")


def _job(number: int) -> dict[str, Any]:
    """The columns of a job: four prompts under each setting, the last one a chat."""
    prompt, setting = divmod(number, len(PARAMS))
    params = GenerationParams.model_validate(PARAMS[setting]).stored
    asked = {"prompt": None, "messages": CHAT} if prompt == 3 else {"prompt": f"Return JSON {prompt} {HOSTILE}"}
    point = {name: value for name, value in PARAMS[setting].items() if name != "strategy"}
    user = {"age": 1.0 if prompt else 2.5, "number": LARGE}
    metadata = {"topic": "<b>dogs</b>" if prompt else "cats", HOSTILE: "key", "user": user}
    return {"params": params, "strategy": params["strategy"], "grid_point": point, "metadata_": metadata,
            "seed": LARGE + number,
            "custom_id": f"{prompt} {HOSTILE}{LONG if prompt == 3 else ''}#{setting}", **asked}  # fmt: skip


def _output(number: int, job_id: int, run_id: str) -> RequestOutput:
    end = "one" if number % 2 else HOSTILE
    tokens = ["{", '"a": ', "\n", "a" if run_id == RUN_ID else "the", " ", end, "}"]
    trace = Trace(
        tokens=tokens,
        logprobs=[-0.0001, -0.2, -0.01, -3.0, -0.1, -7.5, -0.3],
        sampling_logprobs=[-0.1] * len(tokens),
        entropies=[0.0, 0.5, 0.1, 2.5, 0.4, 3.5, 0.6],
        ranks=[1, 1, 1, 4, 1, 90, 1],
        kept=[1, 2, 1, 9, 2, 200, 2],
        top_logprobs=[[{"token_id": 1, "token": HOSTILE, "logprob": -0.1}]] * len(tokens),
    )
    ids = tuple(range(len(tokens)))
    done = Completion(0, ids, "".join(tokens), FinishReason.EOS, -11.1, trace=trace)
    endings = ["}", "]", ")", HOSTILE]
    hypotheses = [
        Hypothesis("".join(pieces), -1.0 - index, FinishReason.EOS, len(ids), (*ids[:-1], 90 + index), pieces)
        for index, pieces in enumerate([*tokens[:-1], ending] for ending in endings)
    ]
    is_beam = PARAMS[number % len(PARAMS)]["strategy"] == "beam"
    return RequestOutput(job_id, 5, (done,), tuple(hypotheses) if is_beam else (), decode_seconds=0.1)
