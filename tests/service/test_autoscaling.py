"""Replicas wanted for tokens that wait."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.autoscaling import QueuedTokens


@pytest.mark.parametrize(
    ("queued", "wanted"),
    [
        ({}, 1),
        ({"a": 0.0}, 1),
        ({"a": 1000.0}, 1),
        ({"a": 1001.0}, 2),
        ({"a": 1500.0, "b": 600.0}, 3),
    ],
)
def test_tokens_of_all_replicas_over_the_target(queued: dict[str, float], wanted: int) -> None:
    context: Any = SimpleNamespace(aggregated_metrics={"queued_tokens": queued})
    assert QueuedTokens(tokens_per_replica=1000)(context) == (wanted, {})


def test_before_the_first_report_there_is_one() -> None:
    context: Any = SimpleNamespace(aggregated_metrics=None)
    assert QueuedTokens()(context) == (1, {})
