"""The parts of the views that revision 0008 added: columns appended to older views, and new views over answers.

Columns are appended, so that PostgreSQL replaces the view and keeps its grants and the views that others made of it.
"""

from __future__ import annotations

#: An outer join: a statement that reads no column of runs leaves it out.
JOINED_RUNS = "LEFT JOIN runs ON runs.id = jobs.run_id\n"

#: A custom id without what a grid appended: `#` and a label, which has no other `#`.
_PROMPT_ID = """
       CASE WHEN jobs.grid_point IS NULL OR replace(jobs.custom_id, '#', '') = jobs.custom_id THEN jobs.custom_id
            ELSE substr(rtrim(jobs.custom_id, replace(jobs.custom_id, '#', '')), 1,
                        length(rtrim(jobs.custom_id, replace(jobs.custom_id, '#', ''))) - 1) END AS prompt_id"""

_PARAMETER = {
    "sqlite": "json_extract(jobs.params, '$.{name}') AS {name}",
    "postgresql": "(jobs.params ->> '{name}')::double precision AS {name}",
}

#: The text of a chat's last message of the user, or of its last message where it has none of the user.
_ASKED = {
    "sqlite": """
       coalesce(jobs.prompt, (
           SELECT CASE json_type(message.value, '$.content') WHEN 'array' THEN (
                      SELECT group_concat(CASE part.type WHEN 'text' THEN part.value
                                               WHEN 'object' THEN json_extract(part.value, '$.text') END, '')
                      FROM json_each(message.value, '$.content') AS part)
                  ELSE json_extract(message.value, '$.content') END
           FROM json_each(jobs.messages) AS message
           ORDER BY coalesce(json_extract(message.value, '$.role') = 'user', 0) DESC, message.key DESC LIMIT 1
       )) AS asked""",
    "postgresql": """
       coalesce(jobs.prompt, (
           SELECT CASE jsonb_typeof(message.value -> 'content') WHEN 'array' THEN (
                      SELECT string_agg(CASE jsonb_typeof(part.value) WHEN 'string' THEN part.value #>> '{}'
                                             WHEN 'object' THEN part.value ->> 'text' END, '' ORDER BY part.ordinality)
                      FROM jsonb_array_elements(CASE jsonb_typeof(message.value -> 'content') WHEN 'array'
                                                THEN message.value -> 'content' END)
                           WITH ORDINALITY AS part(value, ordinality))
                  ELSE message.value ->> 'content' END
           FROM jsonb_array_elements(jobs.messages) WITH ORDINALITY AS message(value, ordinality)
           ORDER BY coalesce(message.value ->> 'role' = 'user', false) DESC, message.ordinality DESC LIMIT 1
       )) AS asked""",
}

_MEAN_LOGPROB = "results.cumulative_logprob / nullif(results.completion_tokens, 0)"

#: `is_json` of PostgreSQL is a function that revision 0008 makes.
_IS_JSON = {
    "sqlite": "CASE WHEN results.text IS NOT NULL THEN json_valid(results.text) END AS is_json",
    "postgresql": "is_json(results.text) AS is_json",
}

#: The parameters without the seed, which samples of one setting may have each.
_SETTING = {"sqlite": "json_remove(params, '$.seed')", "postgresql": "params - 'seed'"}


def appended_columns(dialect: str) -> dict[str, str]:
    """View name -> the columns behind those of the revisions before, in a dialect."""
    parameters = ", ".join(_PARAMETER[dialect].format(name=name) for name in ("temperature", "top_p"))
    return {
        "job_results": f",{_PROMPT_ID}, {parameters},{_ASKED[dialect]},\n"
        f"       {_MEAN_LOGPROB} AS mean_logprob, {_IS_JSON[dialect]}",
        "job_tokens": f", runs.name AS run_name, runs.model,{_PROMPT_ID}, {parameters}",
    }


ANSWER_GROUPS = """
SELECT run_id, run_name, model, prompt_id, min(asked) AS asked, text, is_json, count(*) AS num_answers,
       CAST(sum(count(*)) OVER (PARTITION BY run_id, prompt_id) AS bigint) AS num_of_prompt,
       count(*) / CAST(sum(count(*)) OVER (PARTITION BY run_id, prompt_id) AS double precision) AS share,
       avg(mean_logprob) AS mean_logprob, min(custom_id) AS first_custom_id
FROM job_results
WHERE result_id IS NOT NULL
GROUP BY run_id, run_name, model, prompt_id, text, is_json
"""

SAMPLE_AGREEMENT = """
SELECT run_id, run_name, model, prompt_id, strategy, temperature, top_p, params, num_samples, num_distinct,
       num_equal / CAST(num_samples AS double precision) AS agreement, text
FROM (
    SELECT run_id, run_name, model, prompt_id, strategy, temperature, top_p, params, text, count(*) AS num_equal,
           CAST(sum(count(*)) OVER (PARTITION BY run_id, prompt_id, params) AS bigint) AS num_samples,
           count(*) OVER (PARTITION BY run_id, prompt_id, params) AS num_distinct,
           row_number() OVER (PARTITION BY run_id, prompt_id, params ORDER BY count(*) DESC, min(result_id)) AS place
    FROM (SELECT run_id, run_name, model, prompt_id, strategy, temperature, top_p, {setting} AS params, text, result_id
          FROM job_results WHERE result_id IS NOT NULL AND strategy <> 'beam') AS samples
    GROUP BY run_id, run_name, model, prompt_id, strategy, temperature, top_p, params, text
) AS counted
WHERE place = 1 AND num_samples > 1
"""

RUN_COMPARISON = f"""
SELECT jobs.run_id, others.run_id AS other_run_id, runs.name AS run_name, other_runs.name AS other_run_name,
       runs.model, other_runs.model AS other_model, jobs.custom_id,{_PROMPT_ID},
       coalesce(results.sample_index, other_results.sample_index) AS sample_index,
       jobs.state, others.state AS other_state, results.text, other_results.text AS other_text,
       CASE WHEN results.id IS NULL AND other_results.id IS NULL THEN 'neither' WHEN results.id IS NULL THEN 'gained'
            WHEN other_results.id IS NULL THEN 'lost' WHEN results.text = other_results.text THEN 'same'
            ELSE 'changed' END AS change,
       results.completion_tokens, other_results.completion_tokens AS other_completion_tokens,
       {_MEAN_LOGPROB} AS mean_logprob, {_MEAN_LOGPROB.replace("results.", "other_results.")} AS other_mean_logprob
FROM jobs
JOIN jobs AS others ON others.custom_id = jobs.custom_id AND others.run_id <> jobs.run_id
JOIN runs ON runs.id = jobs.run_id
JOIN runs AS other_runs ON other_runs.id = others.run_id
LEFT JOIN results ON results.job_id = jobs.id
LEFT JOIN results AS other_results
    ON other_results.job_id = others.id AND other_results.sample_index = coalesce(results.sample_index, 0)
"""


def analysis_views(dialect: str) -> dict[str, str]:
    """The views over answers, in a dialect; they stand on `job_results`."""
    return {
        "answer_groups": ANSWER_GROUPS,
        "sample_agreement": SAMPLE_AGREEMENT.format(setting=_SETTING[dialect]),
        "run_comparison": RUN_COMPARISON,
    }
