"""Best-of-n against gold: what choosing by reward is worth, and where it begins to hurt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from trainer.evaluation.intervals import Estimate, bootstrap_ratio


@dataclass(frozen=True)
class Point:
    """``gold``: mean gold score of the response with the highest reward among ``n`` drawn ones,
    less the mean gold score of the prompt; ``possible``: the same when gold itself chooses.
    ``kl`` = log n − (n − 1)/n bounds the divergence from the sampler, in nats."""

    n: int
    kl: float
    gold: Estimate
    possible: float


@dataclass(frozen=True)
class BestOfN:
    """The curve over ``prompts``, all of which have as many responses as the largest n needs."""

    prompts: int
    points: list[Point]


def best_of_n(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]], *, draws: int, seed: int
) -> BestOfN | None:
    """The curve over (rewards, gold) of every prompt, n = 1, 2, 4, …

    The largest n is one that at least half of the prompts have responses for; prompts with fewer
    are left out of every point. None: no prompt has two responses.
    """
    sizes = sorted(len(rewards) for rewards, _ in groups)
    if not sizes or sizes[len(sizes) // 2] < 2:
        return None
    largest = 2 ** int(math.log2(sizes[len(sizes) // 2]))
    used = [(rewards, gold) for rewards, gold in groups if len(rewards) >= largest]
    points = []
    for n in (2**power for power in range(largest.bit_length())):
        gains = [_gain(rewards, gold, n) for rewards, gold in used]
        possible = [_gain(gold, gold, n) for _, gold in used]
        estimate = bootstrap_ratio(gains, [1.0] * len(gains), draws=draws, seed=seed)
        points.append(Point(n, math.log(n) - (n - 1) / n, estimate, float(np.mean(possible))))
    return BestOfN(len(used), points)


def _gain(rewards: Sequence[float], gold: Sequence[float], n: int) -> float:
    return expected_gold(rewards, gold, n) - float(np.mean(gold))


def expected_gold(rewards: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Mean gold score of the best by reward, over all subsets of ``n`` of the K responses; exact.

    The response of rank i from below (from 0) is the best of C(i, n − 1) of the C(K, n) subsets.
    Equal rewards share their ranks: each is as likely to be taken.
    """
    order = sorted(range(len(rewards)), key=lambda place: rewards[place])
    shared: list[float] = []
    for _, block in groupby(order, key=lambda place: rewards[place]):
        golds = [gold[place] for place in block]
        shared += [sum(golds) / len(golds)] * len(golds)
    subsets = math.comb(len(rewards), n)
    return sum(math.comb(rank, n - 1) * value for rank, value in enumerate(shared)) / subsets
