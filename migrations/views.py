"""The views for people who write SQL, as of each revision of the schema.

Their text is the same on SQLite and PostgreSQL, except where JSON is unrolled.
"""

from __future__ import annotations

from migrations.analysis_views import JOINED_RUNS, analysis_views, appended_columns

JOB_RESULTS = """
SELECT jobs.run_id, runs.name AS run_name, runs.model, jobs.id AS job_id, jobs.custom_id, jobs.state,
       jobs.strategy, jobs.params, jobs.seed, jobs.priority, results.id AS result_id, results.sample_index,
       results.text, results.finish_reason, results.prompt_tokens, results.completion_tokens,
       results.cumulative_logprob, results.score, results.queued_seconds, results.prefill_seconds,
       results.decode_seconds, jobs.worker, jobs.attempts, jobs.error, {added}jobs.metadata, jobs.grid_point,
       jobs.prompt, jobs.messages, jobs.created_at, jobs.started_at, jobs.finished_at, results.environment_id{appended}
FROM jobs
JOIN runs ON runs.id = jobs.run_id
LEFT JOIN results ON results.job_id = jobs.id
"""

JOB_TOKENS = """
SELECT jobs.run_id, jobs.custom_id, jobs.strategy, results.job_id, results.sample_index, token_traces.*{appended}
FROM token_traces
JOIN results ON results.id = token_traces.result_id
JOIN jobs ON jobs.id = results.job_id
{joined}"""

TOKEN_ALTERNATIVES = {
    "sqlite": """
SELECT token_traces.result_id, token_traces.position, alternative.key + 1 AS alternative,
       json_extract(alternative.value, '$.token_id') AS token_id,
       json_extract(alternative.value, '$.token') AS token,
       json_extract(alternative.value, '$.logprob') AS logprob
FROM token_traces, json_each(token_traces.top_logprobs) AS alternative
""",
    "postgresql": """
SELECT token_traces.result_id, token_traces.position, alternative.ordinality AS alternative,
       (alternative.value ->> 'token_id')::integer AS token_id,
       alternative.value ->> 'token' AS token,
       (alternative.value ->> 'logprob')::double precision AS logprob
FROM token_traces, jsonb_array_elements(token_traces.top_logprobs) WITH ORDINALITY AS alternative(value, ordinality)
""",
}

RUN_SUMMARY = """
SELECT runs.id AS run_id, runs.name AS run_name, runs.model, runs.state, runs.num_jobs,
       runs.num_jobs - runs.num_succeeded - runs.num_failed - runs.num_cancelled - runs.num_expired AS num_open,
       runs.num_succeeded, runs.num_failed, runs.num_cancelled, runs.num_expired, runs.completion_tokens,
       runs.created_at, runs.finished_at, {added}runs.source
FROM runs
"""


#: Revision -> the columns that `job_results` has beside those of the first one, until the next revision that is here.
ADDED_TO_JOB_RESULTS = {
    "0001": "",
    "0002": "jobs.error_code, jobs.num_crashes, jobs.expires_at, ",
    "0004": "jobs.error_code, jobs.num_crashes, jobs.expires_at, jobs.chat, results.prompt_hash, results.prompt_text, ",
}

#: The same for `run_summary`.
ADDED_TO_RUN_SUMMARY = {"0001": "", "0007": "runs.paused_at, runs.max_running, "}

#: The first revision whose views are those of `analysis_views`: a name for the prompt, parameters, whole new views.
ANALYSIS = "0008"

LATEST = "0008"


def view_definitions(dialect: str, revision: str = LATEST) -> dict[str, str]:
    """View name -> SELECT, for the dialect `sqlite` or `postgresql`, as of a revision; in an order to make them in."""
    has_analysis = revision >= ANALYSIS
    appended = appended_columns(dialect) if has_analysis else {"job_results": "", "job_tokens": ""}
    return {
        "job_results": JOB_RESULTS.format(
            added=_as_of(revision, ADDED_TO_JOB_RESULTS), appended=appended["job_results"]
        ),
        "job_tokens": JOB_TOKENS.format(appended=appended["job_tokens"], joined=JOINED_RUNS if has_analysis else ""),
        "token_alternatives": TOKEN_ALTERNATIVES[dialect],
        "run_summary": RUN_SUMMARY.format(added=_as_of(revision, ADDED_TO_RUN_SUMMARY)),
        **(analysis_views(dialect) if has_analysis else {}),
    }


def _as_of(revision: str, added: dict[str, str]) -> str:
    return added[max(each for each in added if each <= revision)]
