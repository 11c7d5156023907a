"""One optimiser step of the policy on a batch of groups."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reward_model.errors import SumzeroError
from trainer.rloo.advantage import leave_one_out, normalize
from trainer.rloo.config import Objective, Optimizer
from trainer.rloo.loss import k2_loss, policy_loss, sequence_kl
from trainer.rloo.policy import Policy, TokenLogprobs
from trainer.rloo.samples import Group


@dataclass(frozen=True, eq=False)
class Part:
    """The finished samples of some whole groups, as much as one forward pass takes.

    ``rewards_GK`` and ``finished_GK`` are padded to the largest group; ``place_B`` is the place of
    each sample in their flattened form.
    """

    prompts: list[tuple[int, ...]]
    responses: list[tuple[int, ...]]
    sampler_R: Tensor
    rewards_GK: Tensor
    finished_GK: Tensor
    place_B: Tensor


@dataclass
class StepStatistics:
    """Per-sample values of a step, collected over its parts."""

    loss: float = 0.0
    kl_loss: float = 0.0
    kl: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    truncated: list[float] = field(default_factory=list)
    sampler_difference: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    computed_tokens: int = 0

    def summary(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "loss/kl": self.kl_loss,
            "kl": statistics.fmean(self.kl),
            "kl_per_token": sum(self.kl) / max(1, self.tokens),
            "advantage_std": statistics.pstdev(self.advantages),
            "ratio_mean": statistics.fmean(self.ratios),
            "ratio_max": max(self.ratios),
            "ratio_min": min(self.ratios),
            "truncated_share": statistics.fmean(self.truncated),
            "sampler_difference": self.sampler_difference / max(1, self.tokens),
            "entropy": self.entropy / max(1, self.tokens),
            "response_tokens": float(self.tokens),
            "computed_tokens": float(self.computed_tokens),
        }


class Learner:
    """Policy, reference, optimiser and schedule.

    Args:
        policy: trained in place.
        reference: frozen; both at the sampling temperature.
        total_steps: where the learning rate has decayed to 0.
        max_batch_tokens: prompt and response tokens of one forward; a group is never cut.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        objective: Objective,
        optimizer: Optimizer,
        *,
        total_steps: int,
        max_batch_tokens: int,
    ) -> None:
        self.policy = policy
        self.reference = reference.requires_grad_(False)
        self.objective = objective
        self.settings = optimizer
        self.total_steps = total_steps
        self.max_batch_tokens = max_batch_tokens
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )

    def step(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Make optimiser step number ``step`` (from 0) on ``groups``; return what it measured."""
        parts = list(self.parts(groups))
        normalizer = self._normalizer(parts)
        advantages = self._normalized(parts) if self.objective.normalize_advantages else None
        statistics_ = StepStatistics()
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts):
            given = None if advantages is None else advantages[number]
            self.backward(part, normalizer, statistics_, given)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm)
        if not bool(torch.isfinite(norm)):
            raise SumzeroError(f"step {step + 1}: the gradient is not finite")
        rate = self.settings.learning_rate * learning_rate_factor(
            step, self.total_steps, self.settings
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return statistics_.summary() | {"grad_norm": float(norm), "learning_rate": rate}

    def backward(
        self,
        part: Part,
        normalizer: float,
        statistics_: StepStatistics,
        advantages_B: Tensor | None = None,
    ) -> None:
        """Add the gradient of one part of the batch."""
        objective, samples = self.objective, len(part.responses)
        tokens, reference_R = self._logprobs(part)
        kl_B = sequence_kl(tokens.logprobs_R, reference_R, tokens.sample_R, samples)
        if advantages_B is None:
            advantages_B = self._advantages(part, kl_B).flatten()[part.place_B]
        loss = policy_loss(
            tokens.logprobs_R,
            part.sampler_R,
            tokens.sample_R,
            advantages_B,
            correction=objective.correction,
            ratio_cap=objective.ratio_cap,
            clip_epsilon=objective.clip_epsilon,
            normalizer=normalizer,
        )
        total = loss.loss
        if objective.kl == "k2":
            weights_B = loss.ratios_B.clamp(max=objective.ratio_cap)
            k2 = objective.beta * k2_loss(
                tokens.logprobs_R, reference_R, tokens.sample_R, weights_B, normalizer=normalizer
            )
            total = total + k2
            statistics_.kl_loss += float(k2.detach())
        torch.autograd.backward(total)
        statistics_.loss += float(total.detach())
        statistics_.kl += kl_B.tolist()
        statistics_.advantages += advantages_B.tolist()
        statistics_.ratios += loss.ratios_B.tolist()
        statistics_.truncated += loss.truncated_B.tolist()
        difference = (tokens.logprobs_R.detach() - part.sampler_R).abs().sum()
        statistics_.sampler_difference += float(difference)
        statistics_.entropy += float(tokens.entropy_R.sum())
        statistics_.tokens += len(part.sampler_R)
        statistics_.computed_tokens += tokens.computed_tokens

    @torch.no_grad()
    def kl(self, groups: Sequence[Group]) -> list[list[float]]:
        """KL of every sample of every group, finished or not, for an evaluation."""
        result: list[list[float]] = []
        for group in groups:
            prompts = [group.prompt.token_ids] * len(group.samples)
            responses = [sample.token_ids for sample in group.samples]
            tokens, reference = self.policy(prompts, responses), self.reference(prompts, responses)
            kl_B = sequence_kl(
                tokens.logprobs_R, reference.logprobs_R, tokens.sample_R, len(responses)
            )
            result.append(kl_B.tolist())
        return result

    def parts(self, groups: Sequence[Group]) -> Iterator[Part]:
        """``groups`` cut so that each part's tokens fit one forward; a larger group goes alone."""
        gathered: list[Group] = []
        size = 0
        for group in groups:
            tokens = sum(len(group.prompt.token_ids) + len(s.token_ids) for s in group.samples)
            if gathered and size + tokens > self.max_batch_tokens:
                yield self._part(gathered)
                gathered, size = [], 0
            gathered.append(group)
            size += tokens
        if gathered:
            yield self._part(gathered)

    def _part(self, groups: Sequence[Group]) -> Part:
        width = max(len(group.samples) for group in groups)
        rewards_GK = torch.zeros(len(groups), width)
        finished_GK = torch.zeros(len(groups), width, dtype=torch.bool)
        prompts, responses, places = [], [], []
        sampler: list[float] = []
        for row, group in enumerate(groups):
            for column, (sample, reward) in enumerate(
                zip(group.samples, group.rewards, strict=True)
            ):
                if reward is None:
                    continue
                rewards_GK[row, column], finished_GK[row, column] = reward, True
                places.append(row * width + column)
                prompts.append(group.prompt.token_ids)
                responses.append(sample.token_ids)
                sampler += sample.logprobs
        device = self.policy.device
        return Part(
            prompts,
            responses,
            torch.tensor(sampler, device=device),
            rewards_GK.to(device),
            finished_GK.to(device),
            torch.tensor(places, device=device),
        )

    def _logprobs(self, part: Part) -> tuple[TokenLogprobs, Tensor]:
        with torch.no_grad():
            reference = self.reference(part.prompts, part.responses)
        return self.policy(part.prompts, part.responses), reference.logprobs_R

    def _advantages(self, part: Part, kl_B: Tensor) -> Tensor:
        """A [G, K] of the returns r - beta KL; without the KL where the loss carries it."""
        beta = self.objective.beta if self.objective.kl == "reward" else 0.0
        kl_GK = torch.zeros_like(part.rewards_GK).flatten()
        kl_GK[part.place_B] = kl_B
        returns_GK = part.rewards_GK - beta * kl_GK.view_as(part.rewards_GK)
        return leave_one_out(returns_GK, part.finished_GK)

    @torch.no_grad()
    def _normalized(self, parts: Sequence[Part]) -> list[Tensor]:
        """Advantages scaled by their spread over the whole batch, which takes a pass of its own."""
        advantages = []
        for part in parts:
            tokens, reference_R = self._logprobs(part)
            kl_B = sequence_kl(tokens.logprobs_R, reference_R, tokens.sample_R, len(part.responses))
            advantages.append(self._advantages(part, kl_B).flatten()[part.place_B])
        together = torch.cat(advantages)[None]
        scaled = normalize(together, torch.ones_like(together))[0]
        return list(torch.split(scaled, [len(part) for part in advantages]))

    def _normalizer(self, parts: Sequence[Part]) -> float:
        if self.objective.average == "token":
            return float(sum(len(part.sampler_R) for part in parts))
        return float(sum(len(part.responses) for part in parts))


def learning_rate_factor(step: int, total_steps: int, settings: Optimizer) -> float:
    """Linear warm-up over ``warmup`` of the steps, then linear decay towards 0 (or constant)."""
    warmup = round(settings.warmup * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    return (total_steps - step) / max(1, total_steps - warmup)
