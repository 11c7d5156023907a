"""How far the scores that are served have moved from those of training.

A reward that is being hacked, or fed text in the wrong template, shows here before anybody looks at
a sample: its scores leave the distribution whose mean and spread the checkpoint carries.
"""

import math
from collections.abc import Iterable

from reward_model.contract import RewardStats

WINDOW = 1000
"""Scores after which an old one has lost most of its weight."""


class ScoreDrift:
    """Exponentially weighted mean and spread of the scores of one model version.

    Each score gets weight 1/min(n, window): a plain average of the first ``window`` scores, a
    moving one after. ``shift`` is (mean − training mean)/training std, ``spread`` is std/training
    std; 0 and 1 where nothing has moved. Both are NaN before the second score.
    """

    def __init__(self, stats: RewardStats, window: int = WINDOW) -> None:
        self._stats = stats
        self._window = window
        self._count = 0
        self._mean = 0.0
        self._variance = 0.0

    def add(self, scores: Iterable[float]) -> None:
        for score in scores:
            self._count += 1
            weight = 1 / min(self._count, self._window)
            apart = score - self._mean
            self._mean += weight * apart
            self._variance = (1 - weight) * (self._variance + weight * apart * apart)

    @property
    def shift(self) -> float:
        if self._count < 2:
            return math.nan
        return (self._mean - self._stats.mean) / self._stats.std

    @property
    def spread(self) -> float:
        return math.nan if self._count < 2 else math.sqrt(self._variance) / self._stats.std
