"""One optimiser step of the policy on a batch of groups, on one process or several.

Every rank is given the whole batch and computes its share of the groups; gradients are added up
over the ranks, so that they are those of one process.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from reward_model.errors import SumzeroError
from trainer.reward import sharding
from trainer.rloo.advantage import leave_one_out, normalize
from trainer.rloo.config import Objective, Optimizer
from trainer.rloo.lora import merged_weights
from trainer.rloo.loss import k2_loss, policy_loss, sequence_kl
from trainer.rloo.parts import Part, cut, part_of
from trainer.rloo.policy import Policy, TokenLogprobs
from trainer.rloo.samples import Group
from trainer.rloo.step_statistics import StepStatistics, added_up
from trainer.rloo.team import Team

Precision = Literal["float32", "bfloat16"]
Reference = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], TokenLogprobs]


class Learner:
    """Policy, reference, optimiser and schedule.

    Args:
        policy: trained in place; what of it has no gradient (a base under adapters) is frozen.
        reference: frozen; both at the sampling temperature.
        total_steps: where the learning rate has decayed to 0.
        max_batch_tokens: prompt and response tokens of one forward; a group is never cut.
        precision: bfloat16 is autocast around float32 weights; log-softmax stays float32.
        team: the ranks; all of them construct a learner from the same weights.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Reference,
        objective: Objective,
        optimizer: Optimizer,
        *,
        total_steps: int,
        max_batch_tokens: int,
        precision: Precision = "float32",
        team: Team | None = None,
    ) -> None:
        self.policy = policy
        if isinstance(reference, Policy):
            reference.requires_grad_(False)
        self.reference = reference
        self.objective = objective
        self.settings = optimizer
        self.total_steps = total_steps
        self.max_batch_tokens = max_batch_tokens
        self.precision = precision
        self.team = team or Team(policy.device)
        self.trained = {
            name: parameter
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=optimizer.learning_rate,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained on a frozen base."""
        return len(self.trained) < sum(1 for _ in self.policy.parameters())

    def step(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Make optimiser step number ``step`` (from 0) on ``groups``; return what it measured.

        Every rank steps; what was measured is known to rank 0.
        """
        self.team.announce("step", groups, step)
        parts = self._share(groups)
        normalizer = self.normalizer(groups)
        advantages = self._normalized(parts) if self.objective.normalize_advantages else None
        statistics_ = StepStatistics()
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts):
            given = None if advantages is None else advantages[number]
            with self._unreduced(number + 1 < len(parts)):
                self.backward(part, normalizer, statistics_, given)
        if not self.team.sharded:
            self.team.sum_gradients(self.trained.values())
        norm = float(
            sharding.whole(
                torch.nn.utils.clip_grad_norm_(self.trained.values(), self.settings.max_grad_norm)
            )
        )
        if not math.isfinite(norm):
            raise SumzeroError(f"step {step + 1}: the gradient is not finite")
        rate = self.settings.learning_rate * learning_rate_factor(
            step, self.total_steps, self.settings
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        gathered = self.team.gather(statistics_)
        if not self.team.leads:
            return {}
        return added_up(gathered).summary() | {"grad_norm": norm, "learning_rate": rate}

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
        total, kl_loss = loss.loss, 0.0
        if objective.kl == "k2":
            weights_B = loss.ratios_B.clamp(max=objective.ratio_cap)
            k2 = objective.beta * k2_loss(
                tokens.logprobs_R, reference_R, tokens.sample_R, weights_B, normalizer=normalizer
            )
            total, kl_loss = total + k2, float(k2.detach())
        # FSDP takes the mean of the ranks' gradients, and their sum is wanted.
        scale = self.team.size if self.team.sharded else 1
        torch.autograd.backward(total * (0 if part.idle else scale))
        if part.idle:
            return
        statistics_.loss += float(total.detach())
        statistics_.kl_loss += kl_loss
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
        self.team.announce("kl", groups)
        share = self.team.share(groups)
        # Layers that are divided over ranks are computed by all ranks or none.
        wanted = -(-len(groups) // self.team.size) if self.team.sharded else len(share)
        values = [self._kl(group) for group in share + [groups[0]] * (wanted - len(share))]
        result: list[list[float]] = [[]] * len(groups)
        for rank, part in enumerate(self.team.gather(values[: len(share)])):
            result[rank :: self.team.size] = part
        return result

    @torch.no_grad()
    def logprobs(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> TokenLogprobs:
        """What the policy computes for ``responses``, without a gradient."""
        if self.team.sharded:
            self.team.announce("logprobs", prompts, responses)
        with self._autocast():
            tokens: TokenLogprobs = self.policy(prompts, responses)
        return tokens

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The policy's whole weights under their plain names, adapters added in."""
        if self.team.sharded:
            self.team.announce("weights")
        if self.has_adapters:
            return merged_weights(self.policy.model)
        state = self.policy.model.state_dict()
        return {name: sharding.whole(tensor) for name, tensor in state.items()}

    @torch.no_grad()
    def state(self) -> dict[str, Tensor]:
        """The optimiser's state as ``<moment>/<parameter>``, and adapters as ``trained/``."""
        if self.team.sharded:
            self.team.announce("state")
        tensors = {}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = sharding.whole(value).cpu().contiguous()
            if self.has_adapters:
                tensors[f"trained/{name}"] = parameter.detach().cpu().contiguous()
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave, on every rank."""
        for name, parameter in self.trained.items():
            stored = {
                key: tensors[f"{key}/{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            self.optimizer.state[parameter] = {
                # The step counter is a scalar, and lies where the parameter is.
                key: value.to(parameter.device)
                if key == "step"
                else sharding.divided_like(value, parameter)
                for key, value in stored.items()
            }
            if self.has_adapters:
                parameter.copy_(tensors[f"trained/{name}"])

    def parts(self, groups: Sequence[Group]) -> Iterator[Part]:
        """``groups`` cut so that each part's tokens fit one forward; a larger group goes alone."""
        return cut(groups, self.max_batch_tokens, self.team.device)

    def normalizer(self, groups: Sequence[Group]) -> float:
        """What the loss of the whole batch is divided by: its finished samples, or their tokens."""
        finished = [
            sample
            for group in groups
            for sample, reward in zip(group.samples, group.rewards, strict=True)
            if reward is not None
        ]
        if self.objective.average == "token":
            return float(sum(len(sample.token_ids) for sample in finished))
        return float(len(finished))

    def _share(self, groups: Sequence[Group]) -> list[Part]:
        """This rank's parts, with idle ones where layers are divided and another rank has more."""
        parts = list(self.parts(self.team.share(groups)))
        if self.team.sharded:
            idle = part_of(groups[:1], self.team.device, idle=True)
            parts += [idle] * (self.team.largest(len(parts)) - len(parts))
        return parts

    def _unreduced(self, more_to_come: bool) -> AbstractContextManager[None]:
        if self.team.sharded and more_to_come:
            return sharding.gradients_kept_local(self.policy)
        return nullcontext()

    def _logprobs(self, part: Part) -> tuple[TokenLogprobs, Tensor]:
        with self._autocast():
            with torch.no_grad():
                reference = self.reference(part.prompts, part.responses)
            return self.policy(part.prompts, part.responses), reference.logprobs_R

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.team.device.type, torch.bfloat16, enabled=enabled)

    def _kl(self, group: Group) -> list[float]:
        prompts = [group.prompt.token_ids] * len(group.samples)
        responses = [sample.token_ids for sample in group.samples]
        with self._autocast():
            tokens, reference = self.policy(prompts, responses), self.reference(prompts, responses)
        kl_B = sequence_kl(tokens.logprobs_R, reference.logprobs_R, tokens.sample_R, len(responses))
        values: list[float] = kl_B.tolist()
        return values

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
        counted = [
            value
            for part, advantages_B in zip(parts, advantages, strict=True)
            if not part.idle
            for value in advantages_B.tolist()
        ]
        ranks = self.team.gather_everywhere(counted)
        together = torch.tensor([value for rank in ranks for value in rank])[None]
        scaled = normalize(together, torch.ones_like(together))[0]
        start = sum(len(rank) for rank in ranks[: self.team.rank])
        own = scaled[start : start + len(counted)].to(self.team.device)
        sizes = [0 if part.idle else len(part.responses) for part in parts]
        return [
            torch.zeros_like(old) if part.idle else new
            for part, old, new in zip(parts, advantages, torch.split(own, sizes), strict=True)
        ]


def learning_rate_factor(step: int, total_steps: int, settings: Optimizer) -> float:
    """Linear warm-up over ``warmup`` of the steps, then linear decay towards 0 (or constant)."""
    warmup = round(settings.warmup * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    return (total_steps - step) / max(1, total_steps - warmup)
