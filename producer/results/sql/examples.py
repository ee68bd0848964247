"""Questions about runs, each with a name and its SQL; tests run each on both databases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A question with its statement, and a word to call it by."""

    name: str
    question: str
    sql: str
    sqlite: str | None = None  # set: SQLite's dialect differs

    def statement(self, dialect: str) -> str:
        return (self.sqlite if dialect == "sqlite" and self.sqlite is not None else self.sql).strip()


_DEPARTURE_FROM_GREEDY = """
select sampled.custom_id, min(a.position) as first_position
from jobs as sampled
join jobs as greedy on greedy.run_id = sampled.run_id and greedy.prompt = sampled.prompt and greedy.strategy = 'greedy'
join results as ra on ra.job_id = sampled.id and ra.sample_index = 0
join results as rb on rb.job_id = greedy.id and rb.sample_index = 0
join token_traces as a on a.result_id = ra.id
join token_traces as b on b.result_id = rb.id and b.position = a.position and b.token_id <> a.token_id
where sampled.strategy = 'sample' and {temperature} = 1
group by sampled.custom_id order by first_position
"""

_TOKENS_BY_HOUR = """
select worker, {hour} as hour, sum(completion_tokens) as tokens,
       sum(completion_tokens) / 3600.0 as tokens_per_second
from job_results where state = 'succeeded' group by worker, hour order by hour, worker
"""

EXAMPLES = (
    Example(
        "strategies",
        "how did each strategy do?",
        """
select run_name, strategy, count(*) as answers, avg(completion_tokens) as mean_tokens, avg(mean_logprob) as mean_logprob
from job_results where state = 'succeeded' group by run_name, strategy order by run_name, strategy
""",
    ),
    Example(
        "uncertain",
        "where was the model least certain?",
        """
select custom_id, sample_index, position, token, logprob, entropy
from job_tokens order by entropy desc limit 20
""",
    ),
    Example(
        "departures",
        "where does sampling at temperature 1 first depart from greedy decoding of the same prompt?",
        _DEPARTURE_FROM_GREEDY.format(temperature="cast(sampled.params ->> 'temperature' as double precision)"),
        _DEPARTURE_FROM_GREEDY.format(temperature="json_extract(sampled.params, '$.temperature')"),
    ),
    Example(
        "json",
        "how many answers are JSON, by strategy and temperature?",
        """
select strategy, temperature, count(*) as answers, sum(case when is_json then 1 else 0 end) as valid_json
from job_results where state = 'succeeded' group by strategy, temperature order by strategy, temperature
""",
    ),
    Example(
        "throughput",
        "how many tokens did each worker make, hour by hour?",
        _TOKENS_BY_HOUR.format(hour="date_trunc('hour', finished_at)"),
        _TOKENS_BY_HOUR.format(hour="strftime('%Y-%m-%d %H:00', finished_at)"),
    ),
    Example(
        "waits",
        "which jobs waited longest?",
        """
select run_id, custom_id, queued_seconds, decode_seconds from job_results
where queued_seconds is not null order by queued_seconds desc limit 20
""",
    ),
    Example(
        "repeats",
        "which samples of one prompt came out the same?",
        """
select run_id, custom_id, count(*) as samples, count(distinct text) as different
from job_results where state = 'succeeded'
group by run_id, custom_id having count(distinct text) < count(*) order by samples desc, custom_id
""",
    ),
    Example(
        "failures",
        "what failed, and why?",
        """
select error_code, count(*) as jobs, min(error) as for_example from jobs
where state in ('failed', 'cancelled', 'expired') group by error_code order by jobs desc
""",
    ),
    Example(
        "attempts",
        "what happened to the jobs that were tried more than once?",
        """
select jobs.custom_id, job_events.at, job_events.worker, from_state, to_state, attempt, reason
from job_events join jobs on jobs.id = job_events.job_id
where jobs.attempts > 1 order by jobs.id, job_events.id limit 100
""",
    ),
    Example(
        "endings",
        "how often did an answer end on its own?",
        """
select strategy, finish_reason, count(*) as answers from job_results
where finish_reason is not null group by strategy, finish_reason order by strategy, finish_reason
""",
    ),
    Example(
        "alternatives",
        "which alternatives came closest to the token that was taken?",
        """
select t.custom_id, t.position, t.token as taken, t.logprob, a.token as other, a.logprob as other_logprob
from job_tokens as t join token_alternatives as a on a.result_id = t.result_id and a.position = t.position
where a.token_id <> t.token_id order by abs(t.logprob - a.logprob) limit 20
""",
    ),
    Example(
        "runs",
        "how did the runs go?",
        """
select run_name, state, num_jobs, num_succeeded, num_failed, completion_tokens, created_at, finished_at
from run_summary order by created_at desc limit 20
""",
    ),
    Example(
        "topics",
        "how many jobs of each topic? (a field of the prompt file that is not a parameter is kept as metadata)",
        """
select metadata ->> 'topic' as topic, count(*) as jobs from jobs group by topic order by jobs desc limit 20
""",
        """
select json_extract(metadata, '$.topic') as topic, count(*) as jobs from jobs group by topic order by jobs desc limit 20
""",
    ),
    Example(
        "answers",
        "which answers did each prompt get, and how often?",
        """
select run_name, prompt_id, num_answers, num_of_prompt, share, mean_logprob, text
from answer_groups order by run_id, prompt_id, num_answers desc, text limit 50
""",
    ),
    Example(
        "agreement",
        "how far do the samples of one prompt and setting agree, and on which answer?",
        """
select run_name, prompt_id, strategy, temperature, top_p, num_samples, num_distinct, agreement, text
from sample_agreement order by agreement, prompt_id limit 50
""",
    ),
    Example(
        "comparison",
        "what changed from each run to each later one, prompt by prompt?",
        """
select run_name, other_run_name, change, count(*) as answers, avg(other_mean_logprob - mean_logprob) as logprob_gained
from run_comparison where run_id < other_run_id group by run_id, run_name, other_run_id, other_run_name, change
order by run_id desc, other_run_id desc, change limit 50
""",
    ),
    Example(
        "lengths",
        "how long are the answers, and how much does that vary?",
        """
select run_name, strategy, count(*) as answers, stddev(completion_tokens) as deviation,
       percentile_cont(0.5) within group (order by completion_tokens) as median,
       percentile_cont(0.9) within group (order by completion_tokens) as p90
from job_results where state = 'succeeded' group by run_name, strategy order by run_name, strategy
""",
        """
select run_name, strategy, count(*) as answers, stddev(completion_tokens) as deviation,
       median(completion_tokens) as median, percentile(completion_tokens, 90) as p90
from job_results where state = 'succeeded' group by run_name, strategy order by run_name, strategy
""",
    ),
)
