"""Reward-model losses: pure functions of rewards.

Shapes: B pairs; ``chosen_B`` and ``rejected_B`` are the rewards r_w and r_l, ``margin_B`` an
optional amount that r_w has to lead by. Δr = r_w − r_l. Rewards of lower precision are computed
in float32; float64 stays float64. Every log σ goes through ``logsigmoid``, so no value or gradient
overflows at any Δr.

The functions named like the losses return one value per pair, [B]; the objective is their mean.
The regularised losses add a penalty to ``bt``:

    bt_bsr     mean bt + λ·M²                       :func:`bsr_penalty`, of the whole batch
    bt_center  mean bt + c·mean (r_w + r_l)²        :func:`center_penalty`, per pair
    bt_l2      mean bt + λ·mean r² over 2B rewards  :func:`l2_penalty`, per pair

Source: arXiv 2505.07271; ``center_penalty`` as in TRL's RewardTrainer (arXiv 2312.09244).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

NORM_EPSILON = 1e-6


def bt(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None) -> Tensor:
    """Bradley-Terry: −log σ(Δr − margin), [B]. Gradient in r_w: −σ(margin − Δr); in r_l: minus it.

    A shift of all rewards by one constant changes neither the value nor the gradient.
    """
    difference_B = _at_least_float32(chosen_B) - _at_least_float32(rejected_B)
    if margin_B is not None:
        difference_B = difference_B - margin_B.to(difference_B)
    return -logsigmoid(difference_B)


def bt_hinge(chosen_B: Tensor, rejected_B: Tensor, hinge_margin: float) -> Tensor:
    """max(0, m − Δr), [B]. Needs m > 0: at m ≤ 0 equal rewards for everything cost nothing."""
    if hinge_margin <= 0:
        raise ValueError(f"hinge_margin must be > 0, got {hinge_margin}")
    return relu(hinge_margin - (_at_least_float32(chosen_B) - _at_least_float32(rejected_B)))


def bt_norm(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """−log σ(Δr / √(r_w² + r_l² + ε²)), ε = 1e-6, [B].

    ε makes it finite and differentiable at r_w = r_l = 0. ``hypot`` keeps the squares from
    overflowing; ε goes in first because the gradient of hypot(0, 0) is NaN.
    """
    chosen_B, rejected_B = _at_least_float32(chosen_B), _at_least_float32(rejected_B)
    epsilon = chosen_B.new_tensor(NORM_EPSILON)
    norm_B = torch.hypot(torch.hypot(chosen_B, epsilon), rejected_B)
    return -logsigmoid((chosen_B - rejected_B) / norm_B)


def bt_dr(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """−log σ(Δr) − log σ(r_w) − log σ(−r_l), [B]: also wants r_w above and r_l below zero."""
    chosen_B, rejected_B = _at_least_float32(chosen_B), _at_least_float32(rejected_B)
    return bt(chosen_B, rejected_B) - logsigmoid(chosen_B) - logsigmoid(-rejected_B)


def bsr_penalty(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """M², M = (1/2B)·Σ(r_w + r_l) over all 2B rewards of the batch (Eq. 24-25), a scalar.

    ∂(M²)/∂r = 2M·1/(2B) = M/B, the same for every reward of the batch. The paper's Eq. 28 prints
    r/B instead, which is the gradient of :func:`l2_penalty`'s mean; finite differences confirm M/B.
    M² is not a sum over parts of a batch: see :mod:`trainer.reward.bsr` for a batch that is cut.
    """
    return mean_reward(chosen_B, rejected_B).square()


def mean_reward(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """M, the mean of all 2B rewards, a scalar. Its gradient in every reward is 1/(2B)."""
    return (_at_least_float32(chosen_B) + _at_least_float32(rejected_B)).mean() / 2


def center_penalty(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """(r_w + r_l)², [B]. A baseline: zero only if every single pair sums to zero."""
    return (_at_least_float32(chosen_B) + _at_least_float32(rejected_B)).square()


def l2_penalty(chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """(r_w² + r_l²)/2, [B]; its mean is the mean of r² over 2B rewards, with gradient r/B.

    A baseline: the loss whose gradient the paper's Eq. 28 prints.
    """
    chosen_B, rejected_B = _at_least_float32(chosen_B), _at_least_float32(rejected_B)
    return (chosen_B.square() + rejected_B.square()) / 2


def _at_least_float32(rewards: Tensor) -> Tensor:
    return rewards if rewards.dtype == torch.float64 else rewards.float()
