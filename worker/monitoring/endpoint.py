"""The HTTP endpoint that Prometheus reads a worker's metrics from; on localhost unless another address is asked for."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from models.database.faults import first_line
from worker.monitoring.exposition import PREFIX, WorkerCollector
from worker.monitoring.worker_state import MetricsUnavailable, WorkerState


class MetricsEndpoint:
    """Serves `/metrics` from a thread of its own until it is closed."""

    def __init__(self, host: str, port: int, read: Callable[[], WorkerState]) -> None:
        """Listens from now on. Raises `MetricsUnavailable`."""
        try:
            self._server, self._thread = start_http_server(port, host, metrics_registry(read))
        except OSError as error:
            raise MetricsUnavailable(
                f"--metrics-port {port}: cannot listen at {host}: {first_line(error)}; "
                "give another --metrics-port or --metrics-host"
            ) from error

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def metrics_registry(read: Callable[[], WorkerState]) -> CollectorRegistry:
    """A worker's own metrics, and the memory and processor time of it and of its engine process."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(read))
    ProcessCollector(registry=registry)
    ProcessCollector(namespace=f"{PREFIX}engine", pid=lambda: read().engine_pid or 0, registry=registry)
    return registry
