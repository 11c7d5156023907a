"""One page of metrics for many processes: where the replicas of a Serve application post theirs.

A scrape reaches one replica of the ingress, and a handle reaches one replica of a model. So each of
them posts what it counted to the one board, and whoever is scraped shows the whole board.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

POST_SECONDS = 5.0
"""How often everybody posts."""

FORGET_SECONDS = 30.0
"""After so long without a post, a replica is taken for gone and its series end."""


@dataclass(frozen=True, slots=True)
class Poster:
    """Who counted: the labels ``deployment`` and ``replica`` of all its series."""

    deployment: str
    replica: str


class MetricsBoard:
    """Keeps the last post of every replica; computes nothing. A Serve deployment of one replica.

    Where it is lost, the next posts fill a new one: counters live in the replicas, not here.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._posts: dict[Poster, tuple[float, list[Metric]]] = {}

    async def post(self, poster: Poster, metrics: list[Metric]) -> None:
        """Take over what ``poster`` counted so far, in place of its last post."""
        self._posts[poster] = (self._clock(), metrics)

    async def page(self) -> bytes:
        """Everybody's metrics in Prometheus' text format."""
        oldest = self._clock() - FORGET_SECONDS
        self._posts = {poster: post for poster, post in self._posts.items() if post[0] >= oldest}
        return page_of({poster: metrics for poster, (_, metrics) in self._posts.items()})


def page_of(posts: dict[Poster, list[Metric]]) -> bytes:
    """Families of the same name become one, their samples told apart by the poster's labels."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Posted(posts))
    return generate_latest(registry)


class _Posted(Collector):
    def __init__(self, posts: dict[Poster, list[Metric]]) -> None:
        self._posts = posts

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for poster, metrics in self._posts.items():
            for metric in metrics:
                into = merged.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                into.samples.extend(_signed(metric, poster))
        return merged.values()


def _signed(metric: Metric, poster: Poster) -> Iterator[Sample]:
    labels = {"deployment": poster.deployment, "replica": poster.replica}
    for sample in metric.samples:
        yield sample._replace(labels={**sample.labels, **labels})
