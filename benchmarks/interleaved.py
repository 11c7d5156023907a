"""Timing several arms side by side: interleaved rounds, medians, ratios."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

Arm = Callable[[], object]


def measure(
    rounds: Callable[[int], Mapping[str, Arm]], count: int, *, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of every arm in every round.

    Args:
        rounds: gives the arms of round i, so that each round can have fresh inputs. Round 0 warms
            up and is not counted.
        count: rounds that count. The order of the arms is drawn anew in each.
    """
    rng = random.Random(seed)
    seconds: dict[str, list[float]] = {}
    for index in range(count + 1):
        arms = rounds(index)
        for name in rng.sample(list(arms), len(arms)):
            started = time.perf_counter()
            arms[name]()
            if index:
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of ``slow``'s time over ``fast``'s in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))
