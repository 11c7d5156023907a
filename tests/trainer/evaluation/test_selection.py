import itertools
import math
import random

import pytest

from trainer.evaluation.selection import best_of_n, expected_gold


def by_enumeration(rewards: list[float], gold: list[float], n: int) -> float:
    """Every subset; equal rewards are broken by a small shift either way."""
    total = count = 0.0
    for subset in itertools.combinations(range(len(rewards)), n):
        top = max(rewards[place] for place in subset)
        best = [gold[place] for place in subset if rewards[place] == top]
        total += sum(best) / len(best)
        count += 1
    return total / count


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_expected_gold_is_the_mean_over_all_subsets(n: int) -> None:
    rng = random.Random(n)
    rewards = [rng.random() for _ in range(5)]
    gold = [rng.gauss(0, 1) for _ in range(5)]
    assert expected_gold(rewards, gold, n) == pytest.approx(by_enumeration(rewards, gold, n))


def test_ties_are_taken_with_equal_chance() -> None:
    assert expected_gold([1.0, 1.0], [0.0, 4.0], 1) == pytest.approx(2.0)
    assert expected_gold([1.0, 1.0], [0.0, 4.0], 2) == pytest.approx(2.0)
    assert expected_gold([1.0, 1.0, 0.0], [0.0, 4.0, 9.0], 3) == pytest.approx(2.0)


def test_the_curve() -> None:
    """By reward equal to gold the best of 2 of (0, 1, 2, 3): mean of the six maxima, 14/6."""
    gold = [0.0, 1.0, 2.0, 3.0]
    curve = best_of_n([(gold, gold), ([-g for g in gold], gold)], draws=50, seed=0)
    assert curve is not None
    assert (curve.prompts, [point.n for point in curve.points]) == (2, [1, 2, 4])
    assert curve.points[0].gold.value == pytest.approx(0.0)
    assert curve.points[1].possible == pytest.approx(14 / 6 - 1.5)
    assert curve.points[1].gold.value == pytest.approx(0.0)  # one gains what the other loses
    assert curve.points[2].possible == pytest.approx(1.5)
    assert curve.points[1].kl == pytest.approx(math.log(2) - 0.5)


def test_nothing_to_choose_from() -> None:
    assert best_of_n([([1.0], [1.0])], draws=5, seed=0) is None
