"""The metrics as Prometheus reads them, and the dashboard, the documentation and the configuration that name them."""

from __future__ import annotations

import json
import re
import socket
from functools import partial
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from models.states import FinishReason
from tests.support.processes import ROOT
from worker.engine.request import Completion, InvalidRequest, RequestOutput
from worker.engine.stats import EngineStats, Histogram, Stats
from worker.monitoring.counts import BOUNDS, Count, Counts, Timing
from worker.monitoring.endpoint import MetricsEndpoint, metrics_registry
from worker.monitoring.worker_state import MetricsUnavailable, WorkerState

LABELS = {"worker": 'a "worker"\n', "model_name": "C:\\model"}
MONITORING = ROOT / "monitoring"


def state_of(counts: Counts, stats: Stats = Stats(), **changed: Any) -> WorkerState:
    values: dict[str, Any] = {
        "labels": LABELS, "device": "cpu", "stats": stats, "counts": counts, "jobs_in_flight": 3, "results_held": 2,
        "is_database_available": True, "max_num_seqs": 64, "kv_tokens": 4096, "engine_pid": None,
    }  # fmt: skip
    return WorkerState(**{**values, **changed})


def samples_of(state: WorkerState) -> dict[tuple[str, str], float]:
    """Name and the value of the label beside the worker's -> value, by prometheus_client's own parser."""
    text = generate_latest(metrics_registry(lambda: state)).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name not in LABELS}
            if not sample.name.startswith(("process_", "nocturne_engine_process_")):
                assert LABELS.items() <= sample.labels.items(), sample
            found[sample.name, " ".join(own.values())] = sample.value
    return found


def busy_counts() -> Counts:
    """One event of every kind, under a label where it has one."""
    counts = Counts()
    for count in Count:
        counts.add(count, label="x" if count in {Count.RETRIES, Count.REQUEST_FAILURE, Count.REQUEST_SUCCESS} else "")
    for timing in Timing:
        counts.observe(timing, 0.02)
    return counts


def test_prometheus_reads_the_numbers_of_a_worker() -> None:
    counts = Counts()
    counts.add(Count.RETRIES, 3, "engine_died")
    counts.add(Count.RETRIES, 1, "worker_stopped")
    counts.add(Count.COMMITS, 5)
    answer = Completion(0, (1,), "a", FinishReason.STOP, -1.0)
    done = RequestOutput(1, 4, (answer,), waiting_seconds=1.0, prefill_seconds=2.0, decode_seconds=3.0)
    for output in (done, RequestOutput(2, 0, error=InvalidRequest("no"))):
        counts.observe_answer(output, 10.0)
        counts.add_ending(output)
    engine = EngineStats(num_steps=7, num_prefill_tokens=11, num_generated_tokens=13)
    engine.decode_seconds.observe(0.25)
    samples = samples_of(state_of(counts, Stats(engine, 100, 60, 2, 5, 8, 0.5)))
    wanted = {
        ("retries_total", "engine_died"): 3, ("retries_total", "worker_stopped"): 1, ("commits_total", ""): 5,
        ("request_success_total", "stop"): 1, ("request_failure_total", "InvalidRequest"): 1,
        ("engine_steps_total", ""): 7, ("prompt_tokens_total", ""): 11, ("generation_tokens_total", ""): 13,
        ("prefix_cache_queries_total", ""): 100, ("prefix_cache_hits_total", ""): 60, ("num_requests_running", ""): 2,
        ("num_requests_waiting", ""): 5, ("num_sequences_running", ""): 8, ("kv_cache_usage_perc", ""): 0.5,
        ("jobs_in_flight", ""): 3, ("results_held", ""): 2, ("database_up", ""): 1, ("lease_expiries_total", ""): 0,
        ("request_queue_time_seconds_sum", ""): 11.0, ("request_queue_time_seconds_count", ""): 1,
        ("time_to_first_token_seconds_sum", ""): 3.0, ("request_decode_time_seconds_sum", ""): 3.0,
        ("engine_step_duration_seconds_count", "decode"): 1, ("engine_step_duration_seconds_count", "prefill"): 0,
        ("engine_step_duration_seconds_bucket", "0.1 decode"): 0,
        ("engine_step_duration_seconds_bucket", "0.25 decode"): 1, ("worker_info", "cpu"): 1,
    }  # fmt: skip
    found = {key: samples.get((f"nocturne_{key[0]}", key[1])) for key in wanted}
    assert found == wanted


@given(st.lists(st.floats(0, 1e6)), st.sampled_from(sorted(BOUNDS)))
def test_a_bucket_holds_all_values_up_to_its_bound(values: list[float], timing: Timing) -> None:
    counts = Counts()
    for value in values:
        counts.observe(timing, value)
    samples = samples_of(state_of(counts))
    for bound in (*map(str, BOUNDS[timing]), "+Inf"):
        assert samples[f"nocturne_{timing}_bucket", bound] == sum(value <= float(bound) for value in values)
    assert samples[f"nocturne_{timing}_count", ""] == len(values)
    assert samples[f"nocturne_{timing}_sum", ""] == pytest.approx(sum(values))


def test_a_copy_of_a_histogram_does_not_change() -> None:
    histogram = Histogram((1.0,))
    copy = histogram.copy()
    histogram.observe(0.5)
    assert (copy.counts, copy.sum) == ([0, 0], 0.0)


def exposed() -> dict[str, set[str]]:
    """The names of all series, and the labels of each."""
    text = generate_latest(metrics_registry(lambda: state_of(busy_counts()))).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


BOARD: dict[str, Any] = json.loads((MONITORING / "grafana" / "dashboards" / "nocturne.json").read_text())


def charts() -> list[dict[str, Any]]:
    lists = [value for value in BOARD.values() if isinstance(value, list)]
    return [each for found in lists for each in found if "targets" in each]


def expressions() -> list[str]:
    found = [target["expr"] for chart in charts() for target in chart["targets"]]
    return [*found, *(each["query"]["query"] for each in BOARD["templating"]["list"])]


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_names_series_and_labels_that_exist(expression: str) -> None:
    known = exposed()
    # Those of an engine's process need one.
    known |= {f"nocturne_engine_{name}": labels for name, labels in known.items() if name.startswith("process_")}
    names = set(re.findall(r"\b(?:nocturne_|process_)\w+", expression))
    assert names and names <= set(known), names - set(known)
    labels = set().union(*(known[name] for name in names)) | {"job", "instance"}  # Prometheus' own
    matched = re.findall(r"(\w+)=~?\"", expression)
    grouped = [name for group in re.findall(r"by \(([^)]*)\)", expression) for name in re.split(r",\s*", group)]
    assert set(matched) | set(grouped) <= labels


@pytest.mark.parametrize("expression", expressions())
def test_rates_are_of_counters_and_quantiles_of_buckets(expression: str) -> None:
    text = generate_latest(metrics_registry(lambda: state_of(busy_counts()))).decode()
    counters = {f"{family.name}_total" for family in text_string_to_metric_families(text) if family.type == "counter"}
    rated = set(re.findall(r"\b(?:rate|increase)\((\w+)", expression))
    buckets = {name for name in rated if name.endswith("_bucket")}
    assert rated - buckets <= counters
    assert counters & set(re.findall(r"\w+_total\b", expression)) <= rated  # the height of a counter says nothing
    for group in re.findall(r"histogram_quantile\([\d.]+, sum by \(([^)]*)\) \(rate\(\w+_bucket", expression):
        assert "le" in re.split(r",\s*", group)
    assert expression.count("histogram_quantile(") == len(buckets)


def test_every_metric_is_documented_and_on_the_dashboard() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    names = {name.removeprefix("nocturne_") for name in exposed() if name.startswith("nocturne_")}
    ours = {re.sub(r"_(bucket|count|sum)$", "", name) for name in names if not name.startswith("engine_process_")}
    assert documented == ours
    shown = " ".join(expressions())
    not_shown = {name for name in ours if f"nocturne_{name}" not in shown}
    rarely = {"engine_steps_total", "kv_cache_tokens", "dropped_jobs_total", "expired_jobs_total", "worker_info"}
    assert not_shown == rarely


def test_prometheus_and_grafana_find_what_the_compose_file_mounts() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    mounts = [mount.split(":") for name in ("prometheus", "grafana") for mount in compose[name]["volumes"]]
    assert all((ROOT / source).exists() and options == ["ro"] for source, _, *options in mounts if source[0] == ".")
    inside = {source: target for source, target, *_ in mounts}
    provider = yaml.safe_load((MONITORING / "grafana/provisioning/dashboards/nocturne.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == inside["./monitoring/grafana/dashboards"]
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert {chart["datasource"]["uid"] for chart in charts()} == {source["datasources"][0]["uid"]}
    assert len({chart["id"] for chart in charts()}) == len(charts()) > 10
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    workers = scraped[0]["dns_sd_configs"][0]
    for name in workers["names"]:
        assert compose[name]["environment"]["NOCTURNE_METRICS_PORT"] == str(workers["port"])
    for target in (each for job in scraped[1:] for each in job["static_configs"][0]["targets"]):
        name, port = target.split(":")
        assert any(mapping.endswith(f":{port}") for mapping in compose[name]["ports"])


def test_an_endpoint_listens_on_localhost_and_names_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsUnavailable, match=f"--metrics-port {port}: .*give another"):
            MetricsEndpoint("127.0.0.1", port, partial(state_of, Counts()))
    with pytest.raises(MetricsUnavailable, match="--metrics-host"):
        MetricsEndpoint("no.such.host.invalid", 9464, partial(state_of, Counts()))
    endpoint = MetricsEndpoint("127.0.0.1", 0, partial(state_of, Counts()))
    with urlopen(f"http://127.0.0.1:{endpoint.port}/metrics") as answer:
        assert "nocturne_jobs_in_flight" in answer.read().decode()
    endpoint.close()
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", endpoint.port)):
        pass
