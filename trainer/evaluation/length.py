"""How much of a reward's agreement with gold is left when length is taken out."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.intervals import Estimate, bootstrap

Array = NDArray[np.float64]
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True, slots=True)
class Group:
    """Responses to be compared with each other: rewards, gold scores, lengths in characters."""

    prompt_id: str
    rewards: Sequence[float]
    gold: Sequence[float]
    lengths: Sequence[int]


def partial_correlation(groups: Sequence[Group], *, draws: int, seed: int) -> Estimate:
    """Correlation of reward and gold given log length, all three less their mean in the group.

        (r_rg − r_rl·r_gl) / √((1 − r_rl²)(1 − r_gl²))

    pooled over groups, with a bootstrap interval over prompts. For pairs, gold is 1 and 0.
    """
    sums: dict[str, Array] = defaultdict(lambda: np.zeros(len(_PAIRS)))
    for group in groups:
        columns = np.array([group.rewards, group.gold, np.log(np.maximum(group.lengths, 1))], float)
        columns -= columns.mean(axis=1, keepdims=True)
        sums[group.prompt_id] += [columns[i] @ columns[j] for i, j in _PAIRS]
    if not sums:
        return Estimate(None, None, None)
    table = np.stack(list(sums.values()))
    estimate = bootstrap(list(table.T), _partial, draws=draws, seed=seed)
    return estimate if np.isfinite(estimate.value or 0.0) else Estimate(None, None, None)


def _partial(sums: list[Array]) -> Array:
    rr, gg, ll, rg, rl, gl = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        r_rg = rg / np.sqrt(rr * gg)
        # Where all lengths are equal there is nothing to take out.
        r_rl = np.where(ll > 0, rl / np.sqrt(rr * ll), 0.0)
        r_gl = np.where(ll > 0, gl / np.sqrt(gg * ll), 0.0)
        values: Array = (r_rg - r_rl * r_gl) / np.sqrt((1 - r_rl**2) * (1 - r_gl**2))
    return values
