"""Prometheus metrics of one server, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from msconv_deploy.serving.batching import RunTimes

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What ``/metrics`` shows."""

    def __init__(self, model: str, waiting: Callable[[], int], unanswered: Callable[[], int]) -> None:
        """
        Args:
            model: name, a label of all metrics.
            waiting: requests in the queue now.
            unanswered: requests accepted and not yet answered now.
        """
        self._registry = CollectorRegistry()
        self._model = model

        def gauge(name: str, text: str, read: Callable[[], int]) -> None:
            Gauge(name, text, ["model"], registry=self._registry).labels(model).set_function(read)

        gauge("msconv_requests_waiting", "Inference requests in the queue", waiting)
        gauge("msconv_requests_unanswered", "Inference requests accepted and not yet answered", unanswered)
        labels = ["model", "protocol", "status"]
        self._requests = Counter("msconv_requests", "Inference requests answered", labels, registry=self._registry)
        self._seconds = Histogram(
            "msconv_request_seconds",
            "Time from the end of an inference request's header to its answer",
            ["model", "protocol"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._run_seconds = Histogram(
            "msconv_run_seconds", "Time of one run of the model", ["model"], buckets=_SECONDS, registry=self._registry
        )
        self._run_rows = Histogram(
            "msconv_run_rows", "Samples in one run of the model", ["model"], buckets=_ROWS, registry=self._registry
        )

    def answered(self, protocol: str, status: str, seconds: float) -> None:
        """An inference request has been answered."""
        self._requests.labels(self._model, protocol, status).inc()
        self._seconds.labels(self._model, protocol).observe(seconds)

    def ran(self, times: RunTimes) -> None:
        """A run of the session has ended."""
        self._run_seconds.labels(self._model).observe(times.compute)
        self._run_rows.labels(self._model).observe(times.rows)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
