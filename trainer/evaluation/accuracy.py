"""Pair accuracy: how often the better response gets the higher reward."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.evaluation.intervals import Estimate, bootstrap_ratio

BALANCED_RATIO = 1.2


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One pair with its rewards. ``length_ratio``: longer text over shorter, in characters."""

    prompt_id: str
    chosen: float
    rejected: float
    length_ratio: float
    longer_chosen: bool


@dataclass(frozen=True)
class Accuracy:
    """Share of pairs with r_chosen > r_rejected; a tie counts as wrong and is counted in ``ties``.

    ``estimate`` carries a bootstrap interval over prompts.
    """

    pairs: int
    prompts: int
    ties: int
    estimate: Estimate


def judge(prompt_id: str, texts: tuple[str, str], rewards: tuple[float, float]) -> JudgedPair:
    """A pair (chosen, rejected) with its rewards."""
    long, short = max(map(len, texts)), min(map(len, texts))
    ratio = long / short if short else math.inf
    return JudgedPair(prompt_id, *rewards, ratio, len(texts[0]) > len(texts[1]))


def pairs_by_gold(gold: Sequence[float], min_gap: float = 0.0) -> Iterator[tuple[int, int]]:
    """Indices (better, worse) of every two responses whose gold scores differ by ``min_gap``.

    Equal gold scores never make a pair.
    """
    for i in range(len(gold)):
        for j in range(i + 1, len(gold)):
            gap = gold[i] - gold[j]
            if gap != 0 and abs(gap) >= min_gap:
                yield (i, j) if gap > 0 else (j, i)


def accuracy(pairs: Sequence[JudgedPair], *, draws: int, seed: int) -> Accuracy:
    """Accuracy over all ``pairs``, each pair with the same weight."""
    correct: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    for pair in pairs:
        correct[pair.prompt_id] += pair.chosen > pair.rejected
        total[pair.prompt_id] += 1
    numerators = [correct[prompt] for prompt in total]
    estimate = bootstrap_ratio(numerators, list(total.values()), draws=draws, seed=seed)
    ties = sum(pair.chosen == pair.rejected for pair in pairs)
    return Accuracy(len(pairs), len(total), ties, estimate)


def length_balanced(pairs: Sequence[JudgedPair]) -> list[JudgedPair]:
    """The pairs whose lengths differ by a factor of less than 1.2."""
    return [pair for pair in pairs if pair.length_ratio < BALANCED_RATIO]


def longer_wins(pairs: Sequence[JudgedPair]) -> float | None:
    """Accuracy of always preferring the longer response: what length alone explains."""
    if not pairs:
        return None
    return sum(pair.longer_chosen for pair in pairs) / len(pairs)
