"""The RLOO objective and what it is made of. Tensors in, tensors out.

    R_i  = r_i - beta * sg(KL_i),     KL_i = sum_t log pi_theta(y_t) - log pi_ref(y_t)     (k1)
    loss = -1/n * sum_i sg(min(rho_i, C)) * A_i * sum_t log pi_theta(y_t)
    rho_i = exp(sum_t log pi_theta(y_t) - log pi_sampler(y_t))

The sampler is whatever wrote the sample: an older policy, and another implementation of it. All
log-probabilities are of the policy at its temperature T: log_softmax(logits / T).

Shape suffixes: R response tokens of all samples laid end to end, B samples. ``sample_R`` names the
sample of each token (see ``ragged``).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.rloo.ragged import sum_per_sample

Correction = Literal["sequence", "token", "clip"]


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """``loss`` is a scalar with a gradient; the rest is for the logs.

    ``ratios_B``: rho of each sample. ``truncated_B``: whether the correction bit (under ``token``:
    the share of its tokens).
    """

    loss: Tensor
    ratios_B: Tensor
    truncated_B: Tensor


def sequence_kl(logprobs_R: Tensor, reference_R: Tensor, sample_R: Tensor, samples: int) -> Tensor:
    """k1 of each sequence: sum_t log pi_theta - log pi_ref in nats, without a gradient, [B].

    An unbiased estimate of KL(pi_theta || pi_ref) for samples of pi_theta; a single value may be
    negative.
    """
    return sum_per_sample((logprobs_R - reference_R).detach(), sample_R, samples)


def policy_loss(
    logprobs_R: Tensor,
    sampler_R: Tensor,
    sample_R: Tensor,
    advantages_B: Tensor,
    *,
    correction: Correction = "sequence",
    ratio_cap: float = 2.0,
    clip_epsilon: float = 0.2,
    normalizer: float | None = None,
) -> PolicyLoss:
    """The policy's loss over the samples of one (part of a) batch.

    Args:
        logprobs_R: log pi_theta, with a gradient.
        sampler_R: log-probabilities the sampler reported.
        advantages_B: 0 where a sample has no reward.
        correction: ``sequence``: truncated importance weight of the whole sequence, min(rho, C).
            ``token``: one truncated weight per token; lower variance, but biased, since the
            weights of the preceding tokens are left out. ``clip``: the surrogate of PPO on the
            sequence's ratio, as published trainers do: -min(rho A, clip(rho, 1±eps) A).
        normalizer: what the sum is divided by, so that parts of a batch add up to the whole; by
            default the number of samples.
    """
    samples = len(advantages_B)
    difference_R = logprobs_R - sampler_R
    log_ratio_B = sum_per_sample(difference_R, sample_R, samples)
    ratios_B = log_ratio_B.detach().exp()
    if correction == "clip":
        ratio_B = log_ratio_B.exp()
        clipped_B = ratio_B.clamp(1 - clip_epsilon, 1 + clip_epsilon)
        objective_B = torch.minimum(ratio_B * advantages_B, clipped_B * advantages_B)
        truncated_B = (clipped_B * advantages_B < ratio_B * advantages_B).float()
    elif correction == "token":
        weights_R = difference_R.detach().exp()
        capped_R = weights_R.clamp(max=ratio_cap)
        objective_B = advantages_B * sum_per_sample(capped_R * logprobs_R, sample_R, samples)
        ones_R = torch.ones_like(weights_R)
        lengths_B = sum_per_sample(ones_R, sample_R, samples).clamp(min=1)
        truncated_B = sum_per_sample((weights_R > ratio_cap).float(), sample_R, samples) / lengths_B
    else:
        logprobs_B = sum_per_sample(logprobs_R, sample_R, samples)
        objective_B = ratios_B.clamp(max=ratio_cap) * advantages_B * logprobs_B
        truncated_B = (ratios_B > ratio_cap).float()
    loss = -objective_B.sum() / (normalizer or samples)
    return PolicyLoss(loss, ratios_B, truncated_B.detach())


def k2_loss(
    logprobs_R: Tensor,
    reference_R: Tensor,
    sample_R: Tensor,
    weights_B: Tensor,
    *,
    normalizer: float | None = None,
) -> Tensor:
    """KL in the loss instead of in the reward: 1/n * sum_i w_i * 1/2 * (sequence log-ratio)^2.

    Its gradient is w * KL_i * grad log pi(y_i), whose expectation is the gradient of
    KL(pi_theta || pi_ref). (k1 in the loss has an expected gradient of zero, and k3 that of the
    forward KL.) ``weights_B``: the truncated importance weights; 0 for a sample to be left out.
    """
    samples = len(weights_B)
    log_ratio_B = sum_per_sample(logprobs_R - reference_R, sample_R, samples)
    return (weights_B.detach() * 0.5 * log_ratio_B.square()).sum() / (normalizer or samples)
