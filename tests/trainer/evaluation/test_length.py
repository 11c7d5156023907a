import numpy as np
import pytest

from trainer.evaluation.length import Group, partial_correlation


def test_against_residuals_of_two_regressions() -> None:
    """The same number by its other definition: correlate what length leaves unexplained."""
    rng = np.random.default_rng(0)
    groups, columns = [], []
    for prompt in range(20):
        lengths = rng.integers(10, 500, 6)
        reward = np.log(lengths) + rng.normal(size=6) + 3 * prompt
        gold = 0.5 * np.log(lengths) + 0.4 * reward + rng.normal(size=6)
        groups.append(Group(str(prompt), reward.tolist(), gold.tolist(), lengths.tolist()))
        table = np.stack([reward, gold, np.log(lengths)])
        columns.append(table - table.mean(1, keepdims=True))
    reward, gold, length = np.concatenate(columns, axis=1)
    left = reward - length * (reward @ length) / (length @ length)
    right = gold - length * (gold @ length) / (length @ length)
    expected = left @ right / np.sqrt((left @ left) * (right @ right))
    found = partial_correlation(groups, draws=200, seed=0)
    assert found.value == pytest.approx(expected)
    assert found.low is not None
    assert found.high is not None
    assert found.low < expected < found.high


def test_a_reward_that_is_length_alone_has_none_left() -> None:
    """Gold is independent of what length does not say, up to the sample."""
    groups = [
        Group("a", [np.log(n) for n in lengths], gold, lengths)
        for lengths, gold in [((10, 20, 40), (1.0, 0.0, 1.0)), ((5, 9, 30), (0.0, 1.0, 1.0))]
    ]
    found = partial_correlation(groups, draws=10, seed=0)
    assert found.value is None or abs(found.value) < 1e-6


def test_equal_lengths_leave_the_plain_correlation() -> None:
    group = Group("a", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [7, 7, 7])
    assert partial_correlation([group], draws=5, seed=0).value == pytest.approx(0.5)


def test_nothing_there() -> None:
    assert partial_correlation([], draws=5, seed=0).value is None
