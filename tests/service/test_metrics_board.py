"""Replicas post their metrics, and one page shows all of them."""

import pickle

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from service.metrics_board import FORGET_SECONDS, MetricsBoard, Poster


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(items: int) -> list[Metric]:
    """What a replica of model m sends that was asked for so many scores, as Ray sends it."""
    metrics = Metrics()
    metrics.items.labels("m").inc(items)
    metrics.queue_seconds.labels("m").observe(0.002)
    posted: list[Metric] = pickle.loads(pickle.dumps(list(metrics.registry.collect())))
    return posted


async def samples(board: MetricsBoard, name: str) -> dict[tuple[str, str], float]:
    """Deployment and replica → value, of the sample of that name."""
    families = text_string_to_metric_families((await board.page()).decode())
    return {
        (sample.labels["deployment"], sample.labels["replica"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


async def test_every_replica_has_its_own_series_under_one_help_line() -> None:
    board = MetricsBoard()
    await board.post(Poster("model-m", "a"), counted(3))
    await board.post(Poster("model-m", "b"), counted(4))
    assert await samples(board, "sumzero_items_total") == {
        ("model-m", "a"): 3,
        ("model-m", "b"): 4,
    }
    assert len(await samples(board, "sumzero_queue_seconds_count")) == 2
    text = (await board.page()).decode()
    assert text.count("# TYPE sumzero_items_total counter") == 1
    assert text.count('sumzero_queue_seconds_bucket{deployment="model-m",le="0.0025"') == 2


async def test_the_last_post_counts() -> None:
    board = MetricsBoard()
    for items in (3, 5):
        await board.post(Poster("model-m", "a"), counted(items))
    assert await samples(board, "sumzero_items_total") == {("model-m", "a"): 5}


async def test_a_replica_that_has_gone_is_forgotten() -> None:
    clock = Clock()
    board = MetricsBoard(clock)
    await board.post(Poster("model-m", "gone"), counted(1))
    clock.now += FORGET_SECONDS
    await board.post(Poster("model-m", "there"), counted(2))
    assert len(await samples(board, "sumzero_items_total")) == 2
    clock.now += 1
    assert await samples(board, "sumzero_items_total") == {("model-m", "there"): 2}
