"""Numbers about a run: how busy its stages were, and what a batch of samples looked like."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trainer.rloo.samples import Group


class BusyClock:
    """The share of time in which a stage had something to do."""

    def __init__(self) -> None:
        self._active = 0
        self._busy = 0.0
        self._since = self._start = time.monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._advance()
        self._active += 1
        try:
            yield
        finally:
            self._advance()
            self._active -= 1

    def idle_share(self) -> float:
        """1 - busy time / time, since the last call."""
        self._advance()
        elapsed = self._since - self._start
        share = 1.0 - self._busy / elapsed if elapsed > 0 else 0.0
        self._busy, self._start = 0.0, self._since
        return share

    def _advance(self) -> None:
        now = time.monotonic()
        if self._active:
            self._busy += now - self._since
        self._since = now


def describe_groups(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Rewards, lengths, ends and staleness of a batch that ``version`` is trained on."""
    samples = [sample for group in groups for sample in group.samples]
    rewards = [reward for group in groups for reward in group.rewards if reward is not None]
    lengths = [float(len(sample.token_ids)) for sample in samples]
    staleness = [float(version - sample.version) for sample in samples]
    values = {
        "reward": statistics.fmean(rewards),
        "reward_std": statistics.pstdev(rewards),
        "masked_share": 1.0 - len(rewards) / len(samples),
        "length": statistics.fmean(lengths),
        "length_max": max(lengths),
        "eos_share": statistics.fmean(sample.ended for sample in samples),
        "staleness": statistics.fmean(staleness),
        "staleness_max": max(staleness),
    }
    return values | measured_means(groups)


def measured_means(groups: Sequence[Group]) -> dict[str, float]:
    """Mean of the raw score of each source, as ``raw/<name>``."""
    means = {}
    for name in groups[0].measured:
        scores = [s for group in groups for s in group.measured[name] if s is not None]
        if scores:
            means[f"raw/{name}"] = statistics.fmean(scores)
    return means
