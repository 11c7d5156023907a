"""Every loss against hand-worked numbers, finite differences and extreme rewards."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.reward import losses

CHOSEN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
REJECTED = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
MARGIN = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64)

Loss = Callable[[Tensor, Tensor], Tensor]
PER_PAIR: dict[str, Loss] = {
    "bt": losses.bt,
    "bt_margin": lambda w, r: losses.bt(w, r, MARGIN),
    "bt_hinge": lambda w, r: losses.bt_hinge(w, r, 1.5),
    "bt_norm": losses.bt_norm,
    "bt_dr": losses.bt_dr,
    "center": losses.center_penalty,
    "l2": losses.l2_penalty,
    "bsr": lambda w, r: losses.bsr_penalty(w, r)[None],
}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_bt_by_hand() -> None:
    expected = [softplus(-1.0), softplus(2.0), math.log(2)]
    assert losses.bt(CHOSEN, REJECTED).tolist() == pytest.approx(expected)


def test_margin_subtracts_from_the_difference() -> None:
    expected = [softplus(-0.5), softplus(2.0), softplus(-1.0)]
    assert losses.bt(CHOSEN, REJECTED, MARGIN).tolist() == pytest.approx(expected)


def test_hinge_by_hand() -> None:
    assert losses.bt_hinge(CHOSEN, REJECTED, 1.5).tolist() == [0.5, 3.5, 1.5]
    assert losses.bt_hinge(CHOSEN, REJECTED, 0.5).tolist() == [0.0, 2.5, 0.5]


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_hinge_refuses_a_margin_that_rewards_nothing(margin: float) -> None:
    with pytest.raises(ValueError, match="hinge_margin"):
        losses.bt_hinge(CHOSEN, REJECTED, margin)


def test_norm_by_hand() -> None:
    expected = [softplus(-1 / math.sqrt(5)), softplus(2 / math.sqrt(2)), math.log(2)]
    assert losses.bt_norm(CHOSEN, REJECTED).tolist() == pytest.approx(expected, rel=1e-9)


def test_dr_by_hand() -> None:
    expected = [
        softplus(-1.0) + softplus(-2.0) + softplus(1.0),
        softplus(2.0) + softplus(1.0) + softplus(1.0),
        math.log(2) + softplus(-0.5) + softplus(0.5),
    ]
    assert losses.bt_dr(CHOSEN, REJECTED).tolist() == pytest.approx(expected)


def test_penalties_by_hand() -> None:
    assert losses.center_penalty(CHOSEN, REJECTED).tolist() == [9.0, 0.0, 1.0]
    assert losses.l2_penalty(CHOSEN, REJECTED).tolist() == [2.5, 1.0, 0.25]
    assert float(losses.mean_reward(CHOSEN, REJECTED)) == pytest.approx(4 / 6)
    assert float(losses.bsr_penalty(CHOSEN, REJECTED)) == pytest.approx((4 / 6) ** 2)


def test_gradient_of_bsr_is_the_mean_over_pairs_and_not_the_reward() -> None:
    """∂(M²)/∂r = M/B for every reward; r/B, as Eq. 28 prints, is the gradient of l2."""
    chosen, rejected = (x.clone().requires_grad_() for x in (CHOSEN, REJECTED))
    losses.bsr_penalty(chosen, rejected).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([4 / 6 / 3] * 3)
    assert rejected.grad.tolist() == pytest.approx([4 / 6 / 3] * 3)

    chosen, rejected = (x.clone().requires_grad_() for x in (CHOSEN, REJECTED))
    losses.l2_penalty(chosen, rejected).mean().backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx((CHOSEN / 3).tolist())


@pytest.mark.parametrize("name", PER_PAIR)
def test_gradients_equal_finite_differences(name: str) -> None:
    loss = PER_PAIR[name]
    chosen = torch.tensor([2.0, -1.0, 0.3], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (chosen, rejected), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PER_PAIR)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e15])
def test_finite_at_extreme_rewards(name: str, scale: float, dtype: torch.dtype) -> None:
    chosen = torch.tensor([-scale, scale, scale], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([scale, -scale, scale], dtype=dtype, requires_grad=True)
    value = PER_PAIR[name](chosen, rejected)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert torch.isfinite(chosen.grad).all()
    assert torch.isfinite(rejected.grad).all()


def test_a_lost_pair_far_away_still_has_a_gradient() -> None:
    """−log(sigmoid) would be infinite here, with a gradient of zero or NaN."""
    chosen = torch.tensor([-1e4], requires_grad=True)
    value = losses.bt(chosen, torch.tensor([1e4]))
    value.sum().backward()
    assert value.tolist() == [2e4]
    assert chosen.grad is not None
    assert float(chosen.grad) == -1.0


def test_norm_is_differentiable_where_both_rewards_are_zero() -> None:
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    losses.bt_norm(zero, torch.zeros(1, dtype=torch.float64)).sum().backward()
    assert zero.grad is not None
    assert float(zero.grad) == pytest.approx(-0.5 / losses.NORM_EPSILON)


def test_bt_does_not_feel_a_common_shift() -> None:
    assert losses.bt(CHOSEN + 7, REJECTED + 7).tolist() == pytest.approx(
        losses.bt(CHOSEN, REJECTED).tolist()
    )


def test_float64_stays_and_lower_precision_becomes_float32() -> None:
    assert losses.bt(CHOSEN, REJECTED).dtype == torch.float64
    assert losses.bt(CHOSEN.half(), REJECTED.half()).dtype == torch.float32
