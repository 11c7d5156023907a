import math
import random

import pytest
from scipy.stats import kendalltau

from trainer.study.comparison import crossed_bootstrap, holm, paired
from trainer.study.measures import CellPrompt, agreement, per_prompt, values


def prompt(name: str, gold: tuple[float, ...], lineages: str) -> CellPrompt:
    return CellPrompt(name, gold, tuple(100 for _ in gold), tuple(lineages))


def test_a_paired_difference_by_hand() -> None:
    """Mean 2, standard deviation 1, so t = 2√3 on two degrees of freedom."""
    found = paired([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    half = 4.302653 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert found.p == pytest.approx(0.07418, abs=1e-5)
    assert found.detectable == pytest.approx((4.302653 + 1.060660) / math.sqrt(3), abs=1e-5)


def test_arms_that_agree_everywhere_do_not_differ() -> None:
    found = paired([0.0, 0.0, 0.0])
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_holm_by_hand() -> None:
    """Sorted .01 .03 .04 .06 times 4 3 2 1, never falling."""
    found = holm({"a": 0.04, "b": 0.01, "c": 0.06, "d": 0.03})
    assert found == pytest.approx({"b": 0.04, "d": 0.09, "a": 0.09, "c": 0.09})


def test_agreement_is_kendalls_tau_where_nothing_ties() -> None:
    rng = random.Random(0)
    gold = tuple(rng.random() for _ in range(7))
    rewards = [rng.random() for _ in range(7)]
    signs, told = agreement(prompt("p", gold, "aabbccd"), rewards)
    assert signs.sum() / told.sum() == pytest.approx(kendalltau(rewards, gold).statistic)


def test_values_by_hand() -> None:
    """Gold 0, 1, 3 and rewards in the order 0, 2, 1: two of three pairs are right; the pair of
    equal lengths is wrong."""
    cell = [CellPrompt("p", (0.0, 1.0, 3.0), (10, 100, 101), ("a", "b", "c"))]
    found = values(cell, per_prompt(cell, [0.0, 2.0, 1.0]), min_gap=0.5)
    assert (found.tau, found.accuracy, found.balanced) == pytest.approx((1 / 3, 2 / 3, 0.0))
    assert values(cell, [[0.0, 2.0, 1.0]], min_gap=1.5).accuracy == pytest.approx(1.0 / 2)


def test_rewards_of_another_cell_are_refused() -> None:
    with pytest.raises(ValueError, match="written anew"):
        per_prompt([prompt("p", (0.0, 1.0), "ab")], [1.0])


def cells(rng: random.Random) -> list[list[CellPrompt]]:
    return [
        [prompt(f"p{i}", tuple(rng.random() for _ in range(6)), "aabbcc") for i in range(12)]
        for _ in range(3)
    ]


def test_the_crossed_bootstrap_estimates_the_mean_difference() -> None:
    rng = random.Random(1)
    found = cells(rng)
    ours = [[[gold + 0.3 * rng.random() for gold in one.gold] for one in cell] for cell in found]
    theirs = [[[rng.random() for _ in one.gold] for one in cell] for cell in found]
    estimate = crossed_bootstrap(found, (ours, theirs), draws=400, seed=0)
    taus = [
        kendalltau(own, one.gold).statistic - kendalltau(other, one.gold).statistic
        for cell, a, b in zip(found, ours, theirs, strict=True)
        for one, own, other in zip(cell, a, b, strict=True)
    ]
    assert estimate.value == pytest.approx(sum(taus) / len(taus))
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 < estimate.low < estimate.value < estimate.high


def test_an_arm_does_not_differ_from_itself() -> None:
    rng = random.Random(2)
    found = cells(rng)
    rewards = [[[rng.random() for _ in one.gold] for one in cell] for cell in found]
    estimate = crossed_bootstrap(found, (rewards, rewards), draws=50, seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)
