"""Bootstrap intervals over prompts: pairs of one prompt are not independent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with a percentile interval; None where there was nothing to estimate from."""

    value: float | None
    low: float | None
    high: float | None


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Σ numerators / Σ denominators, resampling prompts with replacement.

    Args:
        numerators, denominators: [P], one per prompt: correct pairs and pairs, τ and 1.
        draws: bootstrap samples; draws in which no denominator is left do not count.
        level: of the percentile interval.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    if bottom.sum() == 0:
        return Estimate(None, None, None)
    return bootstrap(
        [top, bottom],
        lambda sums: np.divide(
            sums[0], sums[1], out=np.full_like(sums[0], np.nan), where=sums[1] > 0
        ),
        draws=draws,
        seed=seed,
        level=level,
    )


def bootstrap(
    per_prompt: Sequence[Array],
    statistic: Callable[[list[Array]], Array],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """An estimate that depends on sums over prompts only.

    Args:
        per_prompt: arrays [P].
        statistic: from the sum of each array over the drawn prompts, [D] each, to values [D].
    """
    table_PK = np.stack(per_prompt, axis=1)
    prompts = len(table_PK)
    value = float(statistic([total[None] for total in table_PK.sum(0)])[0])
    rng = np.random.default_rng(seed)
    times_DP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    values = statistic(list((times_DP @ table_PK).T))
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(value, None, None)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))
