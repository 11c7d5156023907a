"""One arm against another over replicates, with what chance explains.

The arms of a replicate share prompts, responses, pairs and the first head, so their difference in
a replicate is a paired one. Two intervals: Student's t over replicates, which takes in seeds and
folds; and a bootstrap that draws prompts and lineages anew, crossed, which takes in who was asked
and who answered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from trainer.evaluation.intervals import Estimate
from trainer.study.measures import CellPrompt, agreement

POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Mean paired difference over replicates; p-value and interval from Student's t.

    ``detectable``: the true difference that this many replicates of this spread would find, two
    sided at 5 %, four times in five.
    """

    mean: float
    low: float
    high: float
    p: float
    detectable: float
    differences: list[float]


def paired(differences: Sequence[float]) -> Difference:
    """From one difference per replicate.

    Raises:
        ValueError: fewer than two replicates.
    """
    count = len(differences)
    if count < 2:
        raise ValueError("a paired difference needs at least two replicates")
    if not any(differences):
        # Student's t would be 0 / 0, and Holm's order cannot place that.
        return Difference(0.0, 0.0, 0.0, 1.0, 0.0, list(differences))
    result = ttest_1samp(differences, 0.0)
    interval = result.confidence_interval(0.95)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    reach = float(student.ppf(0.975, count - 1) + student.ppf(POWER, count - 1))
    return Difference(
        float(np.mean(differences)),
        float(interval.low),
        float(interval.high),
        float(result.pvalue),
        reach * error,
        list(differences),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of a family of p-values."""
    ordered = sorted(p_values, key=p_values.__getitem__)
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * p_values[name]))
        corrected[name] = largest
    return corrected


def crossed_bootstrap(
    cells: Sequence[Sequence[CellPrompt]],
    arms: tuple[Sequence[Sequence[Sequence[float]]], Sequence[Sequence[Sequence[float]]]],
    *,
    draws: int,
    seed: int,
) -> Estimate:
    """Difference in mean τ of two arms, prompts and lineages drawn with replacement.

    Args:
        cells: one per replicate.
        arms: rewards [replicate][prompt][response] of the arm, and of what it is compared with.

    A prompt counts as often as it is drawn, in every replicate alike, and a pair of responses as
    often as both of its lineages are.
    """
    prompts = sorted({prompt.prompt_id for cell in cells for prompt in cell})
    lineages = sorted({name for cell in cells for prompt in cell for name in prompt.lineages})
    prompt_place = {name: place for place, name in enumerate(prompts)}
    lineage_place = {name: place for place, name in enumerate(lineages)}
    rng = np.random.default_rng(seed)
    times_DP = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=draws)
    times_DL = rng.multinomial(len(lineages), np.full(len(lineages), 1 / len(lineages)), size=draws)
    # The last row is what was seen: everything once.
    times_DP = np.vstack([times_DP, np.ones(len(prompts), dtype=int)])
    times_DL = np.vstack([times_DL, np.ones(len(lineages), dtype=int)])
    top, bottom = np.zeros(draws + 1), np.zeros(draws + 1)
    for cell, ours, theirs in zip(cells, *arms, strict=True):
        for prompt, own, other in zip(cell, ours, theirs, strict=True):
            won, told = agreement(prompt, own)
            lost, _ = agreement(prompt, other)
            weights_DR = times_DL[:, [lineage_place[name] for name in prompt.lineages]]
            gain = np.einsum("di,ij,dj->d", weights_DR, won - lost, weights_DR, optimize=True)
            pairs = np.einsum("di,ij,dj->d", weights_DR, told, weights_DR, optimize=True)
            times_D = times_DP[:, prompt_place[prompt.prompt_id]] * (pairs > 0)
            top += times_D * np.divide(gain, pairs, out=np.zeros_like(gain), where=pairs > 0)
            bottom += times_D
    drawn = top[:-1][bottom[:-1] > 0] / bottom[:-1][bottom[:-1] > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(top[-1] / bottom[-1]), float(low), float(high))
