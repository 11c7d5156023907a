"""Leave-one-out advantages on groups worked by hand."""

import pytest
import torch

from trainer.rloo.advantage import leave_one_out, normalize


def test_hand_worked_group():
    returns = torch.tensor([[1.0, 2.0, 6.0]])
    finished = torch.ones_like(returns, dtype=torch.bool)
    # 1 - (2+6)/2, 2 - (1+6)/2, 6 - (1+2)/2
    expected = torch.tensor([[-3.0, -1.5, 4.5]])
    torch.testing.assert_close(leave_one_out(returns, finished), expected)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_equals_the_scaled_distance_to_the_mean(k):
    returns = torch.randn(5, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    finished = torch.ones_like(returns, dtype=torch.bool)
    expected = k / (k - 1) * (returns - returns.mean(1, keepdim=True))
    torch.testing.assert_close(leave_one_out(returns, finished), expected)


def test_a_missing_sample_leaves_the_baseline():
    returns = torch.tensor([[1.0, float("nan"), 4.0, 10.0], [2.0, 0.0, 3.0, 7.0]])
    finished = torch.tensor([[True, False, True, True], [True, False, False, True]])
    expected = torch.tensor([[-6.0, 0.0, -1.5, 7.5], [-5.0, 0.0, 0.0, 5.0]])
    torch.testing.assert_close(leave_one_out(returns, finished), expected)


def test_a_reward_of_zero_is_not_a_missing_one():
    returns = torch.tensor([[0.0, 0.0, 3.0]])
    finished = torch.ones_like(returns, dtype=torch.bool)
    torch.testing.assert_close(leave_one_out(returns, finished), torch.tensor([[-1.5, -1.5, 3.0]]))


@pytest.mark.parametrize("finished", [[[True]], [[True, False, False]], [[False, False, False]]])
def test_fewer_than_two_are_refused(finished):
    mask = torch.tensor(finished)
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(torch.ones(mask.shape), mask)


def test_normalize_ignores_missing_samples():
    advantages = torch.tensor([[-1.0, 0.0, 1.0], [2.0, -2.0, 0.0]])
    finished = torch.tensor([[True, False, True], [True, True, False]])
    known = torch.tensor([-1.0, 1.0, 2.0, -2.0])
    scaled = normalize(advantages, finished)
    torch.testing.assert_close(scaled[finished], known / (known.std() + 1e-4))
    assert (scaled[~finished] == 0).all()
