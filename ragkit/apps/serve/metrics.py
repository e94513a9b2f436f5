"""Counters and durations for Prometheus, each server's own, and OpenTelemetry spans where an SDK is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ragkit.core.errors import MissingExtra

if TYPE_CHECKING:
    from ragkit.apps.serve.batching import Batcher

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class Metrics:
    """The counters behind `/metrics`. No label ever holds what a caller sent: routes and models are the server's."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise MissingExtra.of("prometheus-client", "server", "the server") from None
        self.registry = CollectorRegistry()
        names = ["method", "route"]
        self._requests = Counter("ragkit_requests", "Answers, by status.", [*names, "status"], registry=self.registry)
        self._seconds = Histogram("ragkit_request_seconds", "Time to answer.", names, buckets=SECONDS, registry=self.registry)
        self._inputs = Histogram("ragkit_batch_inputs", "Inputs of a batch.", ["model"], buckets=INPUTS, registry=self.registry)
        self._tokens = Counter("ragkit_tokens", "Tokens computed.", ["model"], registry=self.registry)
        self._waiting = Gauge("ragkit_waiting", "What waits for a model.", ["model", "unit"], registry=self.registry)
        self._busy = Counter("ragkit_model_seconds", "Time that models computed.", ["model"], registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        method = method if method in ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS") else "other"
        self._requests.labels(method, route, str(status or 499)).inc()  # 499: the caller went away
        self._seconds.labels(method, route).observe(seconds)

    def batch(self, model: str) -> Callable[[int, int, float], None]:
        """Return the function that a model's Batcher calls after each batch."""

        def count(inputs: int, tokens: int, seconds: float) -> None:
            self._inputs.labels(model).observe(inputs)
            self._tokens.labels(model).inc(tokens)
            self._busy.labels(model).inc(seconds)

        return count

    def watch(self, model: str, batcher: Batcher) -> None:
        """Show the length of a model's queue."""
        self._waiting.labels(model, "requests").set_function(lambda: batcher.waiting_requests)
        self._waiting.labels(model, "tokens").set_function(lambda: batcher.waiting_tokens)

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class Spans:
    """A span per request, joined to the caller's trace. Does nothing if opentelemetry is not installed or not configured."""

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            self._trace = None
        else:
            self._trace, self._extract = trace, propagate.extract
            self._tracer = trace.get_tracer("ragkit.apps.serve")

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Callable[[str, int], None]]:
        """Yield a function that takes the route and the status when they are known."""
        if self._trace is None:
            yield lambda route, status: None
            return
        kind = self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(method, context=self._extract(dict(headers)), kind=kind) as span:

            def finish(route: str, status: int) -> None:
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})

            yield finish

    @contextmanager
    def within(self, name: str, **attributes: str | int) -> Iterator[None]:
        """Trace a part of a request."""
        if self._trace is None:
            yield
            return
        with self._tracer.start_as_current_span(name, attributes=attributes):
            yield
