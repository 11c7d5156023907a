"""A step of the learner: micro-batches, missing rewards, KL in the reward, and TRL's arithmetic."""

import copy
import dataclasses

import pytest
import torch

from tests.checkpoints import tiny_model
from tests.trainer.rloo.groups import random_groups
from trainer.rloo.config import Objective, Optimizer
from trainer.rloo.learner import Learner, learning_rate_factor
from trainer.rloo.policy import Policy
from trainer.rloo.step_statistics import StepStatistics


def make_learner(objective: Objective | None = None, max_batch_tokens: int = 100_000) -> Learner:
    return Learner(
        Policy(tiny_model("qwen2", "causal", seed=0), 0.7),
        Policy(tiny_model("qwen2", "causal", seed=1), 0.7),
        objective or Objective(),
        Optimizer(learning_rate=1e-3, max_grad_norm=1e9),
        total_steps=10,
        max_batch_tokens=max_batch_tokens,
    )


def gradient_of(learner: Learner, groups) -> tuple[torch.Tensor, StepStatistics]:
    parts = list(learner.parts(groups))
    statistics = StepStatistics()
    normalizer = learner.normalizer(groups)
    for part in parts:
        learner.backward(part, normalizer, statistics)
    return torch.cat([p.grad.flatten() for p in learner.policy.parameters()]), statistics


def test_gradient_is_that_of_the_formula():
    learner = make_learner(Objective(beta=0.05))
    groups = random_groups(learner.policy)
    gradient, statistics = gradient_of(learner, groups)

    policy = Policy(tiny_model("qwen2", "causal", seed=0), 0.7)
    reference = Policy(tiny_model("qwen2", "causal", seed=1), 0.7)
    loss, advantages = torch.zeros(()), []
    for group in groups:
        logprobs, returns = [], []
        for sample, reward in zip(group.samples, group.rewards, strict=True):
            arguments = ([group.prompt.token_ids], [sample.token_ids])
            logprob = policy(*arguments).logprobs_R.sum()
            kl = logprob.detach() - reference(*arguments).logprobs_R.sum().detach()
            logprobs.append(logprob)
            returns.append(reward - 0.05 * float(kl))
        for i, logprob in enumerate(logprobs):
            others = returns[:i] + returns[i + 1 :]
            advantages.append(returns[i] - sum(others) / len(others))
            loss = loss - advantages[-1] * logprob
    (loss / 12).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert statistics.advantages == pytest.approx(advantages, abs=1e-4)
    assert statistics.ratios == pytest.approx([1.0] * 12, abs=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(correction="token", average="token"),
        Objective(kl="k2"),
        Objective(normalize_advantages=True),
    ],
)
def test_micro_batches_add_up_to_the_batch(objective):
    def weights_after(max_batch_tokens: int) -> tuple[torch.Tensor, dict[str, float]]:
        learner = make_learner(objective, max_batch_tokens)
        groups = random_groups(learner.policy)
        values = learner.step(groups, 0)
        return torch.cat([p.detach().flatten() for p in learner.policy.parameters()]), values

    (whole, values), (cut, cut_values) = weights_after(100_000), weights_after(1)
    assert values["grad_norm"] == pytest.approx(cut_values["grad_norm"], rel=1e-4)
    assert values["loss"] == pytest.approx(cut_values["loss"], abs=1e-4)
    torch.testing.assert_close(whole, cut, atol=1e-4, rtol=0)


def test_a_sample_without_reward_has_no_part_in_the_step():
    learner = make_learner()
    groups = random_groups(learner.policy, groups=1)
    holed = dataclasses.replace(groups[0], rewards=(*groups[0].rewards[:3], None))
    fewer = dataclasses.replace(
        groups[0], rewards=groups[0].rewards[:3], samples=groups[0].samples[:3]
    )
    one, _ = gradient_of(learner, [holed])
    learner.policy.zero_grad()
    other, _ = gradient_of(learner, [fewer])
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_reference_stays_and_policy_moves_towards_what_is_rewarded():
    learner = make_learner(Objective(beta=0.0))
    groups = random_groups(learner.policy, groups=1)
    reference = copy.deepcopy(learner.reference.state_dict())
    best = max(range(4), key=lambda n: groups[0].rewards[n])

    def logprob() -> float:
        arguments = ([groups[0].prompt.token_ids], [groups[0].samples[best].token_ids])
        return float(learner.policy(*arguments).logprobs_R.sum().detach())

    before = logprob()
    learner.step(groups, 5)
    assert logprob() > before
    for name, value in learner.reference.state_dict().items():
        assert torch.equal(value, reference[name])


def test_bfloat16_is_autocast_around_float32_weights():
    def stepped(precision) -> tuple[Learner, dict[str, float]]:
        learner = make_learner()
        groups = random_groups(learner.policy)
        learner.precision = precision
        return learner, learner.step(groups, 5)

    (exact, values), (rounded, rounded_values) = stepped("float32"), stepped("bfloat16")
    assert all(one.dtype == torch.float32 for one in rounded.policy.parameters())
    assert values["sampler_difference"] < 1e-5 < rounded_values["sampler_difference"] < 0.1
    assert rounded_values["grad_norm"] == pytest.approx(values["grad_norm"], rel=0.1)
    assert exact.trained.keys() == rounded.trained.keys()


def test_learning_rate_warms_up_and_decays_to_zero():
    settings = Optimizer(warmup=0.2)
    factors = [learning_rate_factor(step, 10, settings) for step in range(11)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[6] == pytest.approx(0.5)
    assert factors[10] == 0.0
