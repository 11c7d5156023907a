"""Kendall's τ-b between rewards and gold scores over the responses of one prompt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau

from trainer.evaluation.intervals import Estimate, bootstrap_ratio


@dataclass(frozen=True)
class Ranking:
    """Mean τ-b over prompts.

    ``undefined`` prompts, where rewards or gold are all equal or fewer than two responses have a
    reward, have no τ: they are not in the mean, and counted here.
    """

    prompts: int
    undefined: int
    estimate: Estimate


def tau_b(rewards: Sequence[float], gold: Sequence[float]) -> float | None:
    """Kendall's τ-b; None where it is undefined."""
    if len(rewards) < 2:
        return None
    tau = float(kendalltau(rewards, gold).statistic)
    return None if math.isnan(tau) else tau


def ranking(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]], *, draws: int, seed: int
) -> Ranking:
    """Mean τ-b over ``groups`` of (rewards, gold), one per prompt, with a bootstrap interval."""
    taus = [tau_b(rewards, gold) for rewards, gold in groups]
    defined = [tau for tau in taus if tau is not None]
    estimate = bootstrap_ratio(defined, [1.0] * len(defined), draws=draws, seed=seed)
    return Ranking(len(defined), len(taus) - len(defined), estimate)
