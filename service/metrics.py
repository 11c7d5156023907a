"""What ``GET /metrics`` shows, in Prometheus' text format.

One :class:`Metrics` per app, each with a registry of its own, so that several apps (and tests) live
in one process. No label and no value ever holds user text.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.scorer import ItemFailure, Outcome

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
_TOKENS = tuple(2**power for power in range(6, 18))


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sumzero_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "sumzero_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.items = Counter(
            "sumzero_items", "Scores asked for (null ones too).", ("model",), registry=registry
        )
        self.item_errors = Counter(
            "sumzero_item_errors", "Scores that are null.", ("model", "type"), registry=registry
        )
        self.tokens = Counter(
            "sumzero_tokens", "True lengths of all sequences.", ("model",), registry=registry
        )
        self.computed_tokens = Counter(
            "sumzero_computed_tokens",
            "Tokens that went through the model; sharing and the cache save the rest.",
            ("model",),
            registry=registry,
        )
        self.queue_tokens = Gauge(
            "sumzero_queue_tokens", "Tokens waiting now.", ("model",), registry=registry
        )
        self.queue_seconds = Histogram(
            "sumzero_queue_seconds",
            "From a request's submission until its first batch began.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "sumzero_batch_tokens",
            "Tokens computed in one forward.",
            ("model",),
            buckets=_TOKENS,
            registry=registry,
        )
        self.batch_sequences = Histogram(
            "sumzero_batch_sequences",
            "Sequences scored in one forward.",
            ("model",),
            buckets=tuple(2**power for power in range(11)),
            registry=registry,
        )
        self.forward_seconds = Histogram(
            "sumzero_forward_seconds",
            "One forward, packing included.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.tokens_per_second = Gauge(
            "sumzero_tokens_per_second",
            "Measured throughput, in true tokens; the base of Retry-After.",
            ("model",),
            registry=registry,
        )
        self.bisections = Counter(
            "sumzero_bisections",
            "Batches cut in two because they failed.",
            ("model",),
            registry=registry,
        )
        self.cache_hits = Counter(
            "sumzero_cache_hits", "Scores taken from the cache.", ("model",), registry=registry
        )
        self.cache_bytes = Gauge(
            "sumzero_cache_bytes", "Memory of the result cache.", registry=registry
        )
        self.self_test_passed = Gauge(
            "sumzero_self_test_passed",
            "1: packed scores equal single ones bit for bit; 0: one sequence per forward instead.",
            ("model",),
            registry=registry,
        )
        self.score_shift = Gauge(
            "sumzero_score_shift",
            "Mean of the last thousand scores or so, less training's, in training's deviations.",
            ("model",),
            registry=registry,
        )
        self.score_spread = Gauge(
            "sumzero_score_spread",
            "Standard deviation of the last thousand scores or so, over training's.",
            ("model",),
            registry=registry,
        )
        self.ready = Gauge("sumzero_ready", "1 when scores can be had.", registry=registry)
        self.model_info = Gauge(
            "sumzero_model_info",
            "Always 1.",
            ("model", "version", "dtype", "device", "scoring"),
            registry=registry,
        )

    def count_answer(self, model: str, outcomes: Sequence[Outcome], tokens: int) -> None:
        """Count one answered request of ``model``."""
        self.items.labels(model).inc(len(outcomes))
        self.tokens.labels(model).inc(tokens)
        for outcome in outcomes:
            if isinstance(outcome, ItemFailure):
                self.item_errors.labels(model, outcome.type).inc()

    def show_drift(self, model: str, shift: float, spread: float) -> None:
        """Where the scores of ``model`` stand against those of its training."""
        self.score_shift.labels(model).set(shift)
        self.score_spread.labels(model).set(spread)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request; ``route`` is a path template, never what the client typed."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def touch(self, models: Iterable[str]) -> None:
        """Let every model's series start at 0 rather than at its first event."""
        for model in models:
            self.queue_tokens.labels(model).set(0)
            for counter in (
                self.items,
                self.tokens,
                self.computed_tokens,
                self.cache_hits,
                self.bisections,
            ):
                counter.labels(model)

    async def page(self) -> bytes:
        """What ``/metrics`` answers."""
        return generate_latest(self.registry)
