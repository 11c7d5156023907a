import numpy as np
import pytest

from trainer.evaluation.intervals import bootstrap_ratio


def test_the_interval_matches_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    estimate = bootstrap_ratio(list(values), [1.0] * 400, draws=4000, seed=1)
    error = values.std() / np.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_pairs_of_one_prompt_move_together() -> None:
    """100 prompts of 10 equal pairs know no more than 100 prompts of one pair."""
    wins = np.random.default_rng(0).integers(0, 2, size=100).astype(float)
    single = bootstrap_ratio(list(wins), [1.0] * 100, draws=2000, seed=0)
    tenfold = bootstrap_ratio(list(10 * wins), [10.0] * 100, draws=2000, seed=0)
    assert tenfold == single


def test_nothing_gives_nothing() -> None:
    assert bootstrap_ratio([], [], draws=10, seed=0).value is None
    assert bootstrap_ratio([0.0], [0.0], draws=10, seed=0).value is None
