"""The metrics of a worker under their public names, as prometheus_client writes them.

Names follow vLLM's where it has one, behind our own prefix; docs/monitoring.md lists them beside those of vLLM and
OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from worker.engine.stats import Histogram, Stats
from worker.monitoring.counts import Count, Timing
from worker.monitoring.worker_state import WorkerState

PREFIX = "nocturne_"


#: Event -> (help, the name of its label or None).
EVENTS: dict[Count, tuple[str, str | None]] = {
    Count.REQUEST_SUCCESS: ("Requests that the engine answered, by the end of the answer", "finished_reason"),
    Count.REQUEST_FAILURE: ("Requests that ended with an error", "error_type"),
    Count.COMMITS: ("Transactions that stored results", None),
    Count.COMMITTED_JOBS: ("Jobs that became final in these transactions", None),
    Count.RETRIES: ("Jobs put back into the queue by this worker", "reason"),
    Count.DROPPED_JOBS: ("Jobs dropped while they ran: cancelled, or given to another worker", None),
    Count.LEASE_EXPIRIES: ("Leases of silent workers that this worker ended", None),
    Count.EXPIRED_JOBS: ("Queued jobs whose deadline this worker saw passed", None),
    Count.LOST_MESSAGES: ("Queued jobs without a message that this worker has sent again", None),
    Count.ENGINE_DEATHS: ("Engine processes that ended unexpectedly", None),
}

TIMINGS: dict[Timing, str] = {
    Timing.QUEUE: "From the submission of a job until the engine began with it",
    Timing.FIRST_TOKEN: "From the arrival of a request in the engine to its first token",
    Timing.PREFILL: "From the start of a request's prefill to its first token",
    Timing.DECODE: "From a request's first token to its last one",
    Timing.COMMIT: "Transactions that stored results",
}

#: Counters of the engine's process; they begin again with a new one, as Prometheus expects of counters.
ENGINE_COUNTERS: dict[str, tuple[str, Callable[[Stats], float]]] = {
    "engine_steps": ("Steps of the engine", lambda stats: stats.counts.num_steps),
    "prompt_tokens": ("Prompt tokens that were computed", lambda stats: stats.counts.num_prefill_tokens),
    "generation_tokens": ("Tokens that were generated", lambda stats: stats.counts.num_generated_tokens),
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache", lambda stats: stats.num_prefix_queries),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache", lambda stats: stats.num_prefix_hits),
    "out_of_memory_steps": ("Steps for which memory ran out", lambda stats: stats.counts.num_out_of_memory),
}

GAUGES: dict[str, tuple[str, Callable[[WorkerState], float]]] = {
    "num_requests_running": ("Requests in the running batch", lambda state: state.stats.num_running),
    "num_requests_waiting": ("Requests that wait in the engine", lambda state: state.stats.num_waiting),
    "num_sequences_running": (
        "Sequences in the running batch: samples and beams of its requests",
        lambda state: state.stats.num_running_sequences,
    ),
    "max_num_sequences": ("Sequences that decode side by side at most", lambda state: state.max_num_seqs),
    "kv_cache_usage_perc": ("Share of the KV cache in use; 1 is all of it", lambda state: state.stats.kv_usage),
    "kv_cache_tokens": ("Tokens that the KV cache holds", lambda state: state.kv_tokens),
    "jobs_in_flight": ("Jobs claimed by this worker and not yet final", lambda state: state.jobs_in_flight),
    "results_held": ("Finished jobs that wait for their commit", lambda state: state.results_held),
    "database_up": ("Whether the database answers this worker", lambda state: float(state.is_database_available)),
}

WORKER_HELP = "The worker, its model and its device"

STEP = "engine_step_duration_seconds"
STEP_HELP = "Steps of the engine, those that compute prompts beside those that only decode"


class WorkerCollector:
    """Reads a worker's numbers whenever Prometheus asks for them."""

    def __init__(self, read: Callable[[], WorkerState]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        state = self._read()
        yield InfoMetricFamily(PREFIX + "worker", WORKER_HELP, {**state.labels, "device": state.device})
        for name, (text, of_state) in GAUGES.items():
            yield _metric(GaugeMetricFamily, name, text, state, {"": of_state(state)})
        for name, (text, of_stats) in ENGINE_COUNTERS.items():
            yield _metric(CounterMetricFamily, name, text, state, {"": of_stats(state.stats)})
        for count, (text, label) in EVENTS.items():
            values = state.counts.by_label(count) if label else {"": state.counts.total(count)}
            yield _metric(CounterMetricFamily, count, text, state, values, label)
        for timing, text in TIMINGS.items():
            yield _histograms(timing, text, state, {"": state.counts.histogram(timing)})
        steps = {"decode": state.stats.counts.decode_seconds, "prefill": state.stats.counts.prefill_seconds}
        yield _histograms(STEP, STEP_HELP, state, steps, "phase")


def _metric(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    state: WorkerState,
    values: Mapping[str, float],
    label: str | None = None,
) -> Metric:
    family = kind(PREFIX + name, text, labels=_label_names(state, label))
    for value_of_label, value in values.items():
        family.add_metric(_label_values(state, label, value_of_label), value)
    return family


def _histograms(
    name: str, text: str, state: WorkerState, values: dict[str, Histogram], label: str | None = None
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=_label_names(state, label))
    for value_of_label, histogram in values.items():
        bounds = [*map(str, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(map(float, histogram.counts)), strict=True))
        family.add_metric(_label_values(state, label, value_of_label), buckets, histogram.sum)
    return family


def _label_names(state: WorkerState, label: str | None) -> Sequence[str]:
    return [*state.labels, *([label] if label else [])]


def _label_values(state: WorkerState, label: str | None, value: str) -> Sequence[str]:
    return [*state.labels.values(), *([value] if label else [])]
