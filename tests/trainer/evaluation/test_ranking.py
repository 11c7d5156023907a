import pytest
from scipy.stats import kendalltau

from trainer.evaluation.ranking import ranking, tau_b


def test_hand_worked() -> None:
    # 6 pairs of responses: 5 concordant, 1 discordant.
    assert tau_b([1.0, 2.0, 4.0, 3.0], [1, 2, 3, 4]) == pytest.approx(4 / 6)
    # One tie in the rewards: (2 - 0) / sqrt(2 * 3).
    assert tau_b([1.0, 1.0, 2.0], [1, 2, 3]) == pytest.approx(2 / 6**0.5)


def test_undefined_prompts_are_counted_and_left_out_of_the_mean() -> None:
    groups = [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
        ([5.0, 5.0, 5.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0], [7.0, 7.0]),
        ([1.0], [7.0]),
    ]
    result = ranking(groups, draws=100, seed=0)
    expected = [kendalltau(*group).statistic for group in groups[:3]]
    assert (result.prompts, result.undefined) == (3, 3)
    assert result.estimate.value == pytest.approx(sum(expected) / 3)


def test_all_undefined() -> None:
    result = ranking([([1.0, 1.0], [1.0, 2.0])], draws=10, seed=0)
    assert (result.prompts, result.undefined, result.estimate.value) == (0, 1, None)
