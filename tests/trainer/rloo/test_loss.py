"""The objective against hand-worked numbers and finite differences."""

import math

import pytest
import torch

from trainer.rloo.loss import k2_loss, policy_loss, sequence_kl

SAMPLE_R = torch.tensor([0, 0, 1, 1, 1])
LOGPROBS_R = torch.tensor([-1.0, -2.0, -0.5, -1.5, -1.0], dtype=torch.float64)
ADVANTAGES_B = torch.tensor([2.0, -1.0], dtype=torch.float64)


def _sampler(log_ratio_0: float, log_ratio_1: float) -> torch.Tensor:
    """Sampler log-probabilities that make the two sequences' log-ratios as given."""
    shift = torch.tensor([log_ratio_0, 0.0, 0.0, log_ratio_1, 0.0], dtype=torch.float64)
    return LOGPROBS_R - shift


def _gradient(loss_of) -> torch.Tensor:
    logprobs = LOGPROBS_R.clone().requires_grad_()
    loss_of(logprobs).backward()
    return logprobs.grad


def test_staleness_zero_is_reinforce():
    result = policy_loss(LOGPROBS_R, LOGPROBS_R, SAMPLE_R, ADVANTAGES_B)
    # -(2 * -3 + -1 * -3) / 2
    assert result.loss.item() == pytest.approx(1.5)
    assert result.ratios_B.tolist() == [1.0, 1.0]
    gradient = _gradient(
        lambda logprobs: policy_loss(logprobs, LOGPROBS_R, SAMPLE_R, ADVANTAGES_B).loss
    )
    assert gradient.tolist() == [-1.0, -1.0, 0.5, 0.5, 0.5]


def test_ratios_are_cut_at_the_cap_and_carry_no_gradient():
    sampler = _sampler(math.log(3.0), math.log(0.5))
    result = policy_loss(LOGPROBS_R, sampler, SAMPLE_R, ADVANTAGES_B, ratio_cap=2.0)
    assert result.ratios_B.tolist() == pytest.approx([3.0, 0.5])
    assert result.truncated_B.tolist() == [1.0, 0.0]
    gradient = _gradient(
        lambda logprobs: policy_loss(logprobs, sampler, SAMPLE_R, ADVANTAGES_B).loss
    )
    # -min(rho, 2) * A / 2 for every token of the sequence
    assert gradient.tolist() == pytest.approx([-2.0, -2.0, 0.25, 0.25, 0.25])


def test_sequence_gradient_is_that_of_the_frozen_weight_by_finite_differences():
    sampler = _sampler(0.4, -0.3)
    weights = torch.tensor([math.exp(0.4), math.exp(-0.3)], dtype=torch.float64)

    def surrogate(logprobs: torch.Tensor) -> float:
        sums = torch.stack([logprobs[:2].sum(), logprobs[2:].sum()])
        return float(-(weights * ADVANTAGES_B * sums).mean())

    gradient = _gradient(
        lambda logprobs: policy_loss(logprobs, sampler, SAMPLE_R, ADVANTAGES_B).loss
    )
    for place in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[place] = 1e-6
        slope = (surrogate(LOGPROBS_R + step) - surrogate(LOGPROBS_R - step)) / 2e-6
        assert gradient[place].item() == pytest.approx(slope, abs=1e-8)


def test_weighted_gradient_is_the_gradient_of_expected_reward():
    """Summed over all outcomes with the sampler's probabilities, it is exact below the cap."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    sampler = torch.log_softmax(torch.tensor([0.0, 0.2, -0.1], dtype=torch.float64), 0)
    rewards = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    expected = torch.autograd.grad(-(torch.softmax(logits, 0) * rewards).sum(), logits)[0]
    total = torch.zeros(3, dtype=torch.float64)
    for outcome in range(3):
        logprob = torch.log_softmax(logits, 0)[outcome : outcome + 1]
        loss = policy_loss(
            logprob, sampler[outcome : outcome + 1], torch.tensor([0]), rewards[outcome, None]
        ).loss
        total += sampler[outcome].exp() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(total, expected)


def test_token_level_caps_each_token():
    sampler = _sampler(math.log(3.0), math.log(0.5))
    options = {"correction": "token", "ratio_cap": 2.0}
    result = policy_loss(LOGPROBS_R, sampler, SAMPLE_R, ADVANTAGES_B, **options)
    assert result.truncated_B.tolist() == pytest.approx([0.5, 0.0])
    gradient = _gradient(
        lambda logprobs: policy_loss(logprobs, sampler, SAMPLE_R, ADVANTAGES_B, **options).loss
    )
    assert gradient.tolist() == pytest.approx([-2.0, -1.0, 0.5, 0.25, 0.5])


def test_clip_is_the_ppo_surrogate_of_the_sequence():
    sampler = _sampler(math.log(1.5), math.log(0.5))
    options = {"correction": "clip", "clip_epsilon": 0.2}
    result = policy_loss(LOGPROBS_R, sampler, SAMPLE_R, ADVANTAGES_B, **options)
    # min(1.5*2, 1.2*2) = 2.4 (clipped); min(0.5*-1, 0.8*-1) = -0.8 (clipped)
    assert result.loss.item() == pytest.approx(-(2.4 - 0.8) / 2)
    assert result.truncated_B.tolist() == [1.0, 1.0]
    gradient = _gradient(
        lambda logprobs: policy_loss(logprobs, sampler, SAMPLE_R, ADVANTAGES_B, **options).loss
    )
    assert gradient.tolist() == [0.0] * 5


def test_parts_of_a_batch_add_up():
    whole = policy_loss(LOGPROBS_R, _sampler(0.2, 0.1), SAMPLE_R, ADVANTAGES_B).loss
    sampler = _sampler(0.2, 0.1)
    first = policy_loss(
        LOGPROBS_R[:2], sampler[:2], torch.zeros(2, dtype=torch.long), ADVANTAGES_B[:1],
        normalizer=2.0,
    ).loss  # fmt: skip
    second = policy_loss(
        LOGPROBS_R[2:], sampler[2:], torch.zeros(3, dtype=torch.long), ADVANTAGES_B[1:],
        normalizer=2.0,
    ).loss  # fmt: skip
    torch.testing.assert_close(first + second, whole)


def test_sequence_kl_is_the_summed_log_ratio_without_gradient():
    reference = LOGPROBS_R - torch.tensor([0.1, 0.2, -0.3, 0.0, 0.1], dtype=torch.float64)
    kl = sequence_kl(LOGPROBS_R.clone().requires_grad_(), reference, SAMPLE_R, 2)
    assert kl.tolist() == pytest.approx([0.3, -0.2])
    assert not kl.requires_grad


def test_k2_gradient_is_the_log_ratio_times_the_score():
    reference = LOGPROBS_R - torch.tensor([0.1, 0.2, -0.3, 0.0, 0.1], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    gradient = _gradient(lambda logprobs: k2_loss(logprobs, reference, SAMPLE_R, weights))
    assert gradient.tolist() == pytest.approx([0.15, 0.15, -0.05, -0.05, -0.05])


def test_k2_expected_gradient_is_that_of_the_kl():
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, -0.4], dtype=torch.float64), 0)
    logprobs = torch.log_softmax(logits, 0)
    kl = (logprobs.exp() * (logprobs - reference)).sum()
    expected = torch.autograd.grad(kl, logits)[0]
    total = torch.zeros(3, dtype=torch.float64)
    for outcome in range(3):
        logprob = torch.log_softmax(logits, 0)[outcome : outcome + 1]
        loss = k2_loss(
            logprob,
            reference[outcome : outcome + 1],
            torch.tensor([0]),
            torch.ones(1, dtype=torch.float64),
        )
        total += logprob.detach().exp() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(total, expected)
