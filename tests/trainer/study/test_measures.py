import math

import pytest

from trainer.study.measures import CellPrompt, partial_tau, values

ONE = CellPrompt("p1", (1.0, 2.0, 3.0, 4.0), (10, 30, 20, 40), ("a", "a", "b", "b"))
TWO = CellPrompt("p2", (1.0, 2.0, 3.0, 4.0), (40, 10, 20, 30), ("a", "a", "b", "b"))


def test_values_of_two_prompts() -> None:
    # Of 6 pairs the first ranking turns one round, the second two: τ = 4/6 and 2/6.
    rewards = [[1.0, 3.0, 2.0, 4.0], [1.0, 4.0, 2.0, 3.0]]
    found = values([ONE, TWO], rewards, min_gap=2.0)
    assert found.tau == pytest.approx(0.5)
    # Gold is apart by 2 in three pairs of each; (2, 4) of the second is ranked wrongly.
    assert found.accuracy == pytest.approx(5 / 6)
    assert found.balanced is None


def test_partial_tau_by_hand() -> None:
    # p1: τ_rg = 4/6, τ_rl = 1, τ_gl = 4/6. p2: τ_rg = 2/6, τ_rl = -4/6, τ_gl = 0.
    rewards = [[1.0, 3.0, 2.0, 4.0], [1.0, 4.0, 2.0, 3.0]]
    rg, rl, gl = 1 / 2, 1 / 6, 1 / 3
    expected = (rg - rl * gl) / math.sqrt((1 - rl**2) * (1 - gl**2))
    assert partial_tau([ONE, TWO], rewards) == pytest.approx(expected)


def test_partial_tau_is_undefined_where_a_ranking_is_missing() -> None:
    assert partial_tau([ONE], [[1.0, 3.0, 2.0, 4.0]]) is None, "reward and length are one"
    assert partial_tau([ONE], [[1.0, 1.0, 1.0, 1.0]]) is None, "no ranking"
