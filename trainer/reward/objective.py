"""The gradient of one optimiser batch, however it is cut into ranks and micro-batches.

Every sum over pairs is divided by |B|, the pairs of the whole optimiser batch, so that a ragged
last batch weighs each of its pairs alike; the data-parallel wrapper averages gradients over ranks,
hence the factor world size. M of ``bt_bsr`` is known before the first backward: from the only
forward where a batch is not cut, else from a pass without gradients over its micro-batches.

Shapes: n pairs of a micro-batch, B pairs of the optimiser batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward_model.model import RewardOutput
from trainer.reward import losses
from trainer.reward.bsr import applied_lambda, surrogate
from trainer.reward.config import LossSettings
from trainer.reward.ranks import gather_rows, sum_over_ranks, world_size

MEASURED = ("chosen", "rejected", "norm_chosen", "norm_rejected", "norm_difference")
"""Columns of :attr:`Outcome.rows_B5`: r_w, r_l, ‖h_w‖, ‖h_l‖, ‖h_w − h_l‖."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Pairs computed at once: ``sequences`` 2i and 2i + 1 are chosen and rejected of pair i.

    An idle one has a sequence but no pair; it keeps ranks with fewer micro-batches in step.
    """

    sequences: Sequence[Sequence[int]]
    margins: Sequence[float] | None = None
    idle: bool = False

    @property
    def pairs(self) -> int:
        return 0 if self.idle else len(self.sequences) // 2


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an optimiser batch gave, over all ranks.

    ``loss`` = ``preference`` + ``weighted_penalty``; ``penalty`` is without its weight, and
    ``applied_weight`` is the λ or c that multiplied it. ``rows_B5``: see :data:`MEASURED`.
    """

    pairs: int
    loss: float
    preference: float
    penalty: float
    weighted_penalty: float
    applied_weight: float
    rows_B5: Tensor


def accumulate_gradients(
    micro_batches: Sequence[MicroBatch],
    forward: Callable[[MicroBatch], RewardOutput],
    backward: Callable[[Tensor], None],
    loss: LossSettings,
    device: torch.device,
    unsynchronised: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Outcome:
    """Add the gradient of ``loss`` on one optimiser batch to the parameters.

    Args:
        micro_batches: this rank's share; as many on every rank (see :class:`MicroBatch`).
        forward: computes rewards [2n] and hidden states [2n, H] of a micro-batch.
        backward: adds a scalar's gradient to the parameters.
        loss: which loss.
        device: where the model is.
        unsynchronised: surrounds all micro-batches but the last, so that ranks need to meet only
            once.
    """
    local = sum(micro.pairs for micro in micro_batches)
    total = int(sum_over_ranks(torch.tensor(local, device=device)))
    covered = {"global": total, "device": local}
    known_mean = _mean_beforehand(micro_batches, forward, loss)
    measured: list[_Measured] = []
    for index, micro in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with nullcontext() if last else unsynchronised():
            output = forward(micro)
            chosen_n, rejected_n = _sides(output.rewards_N, micro)
            mean = known_mean
            if loss.name == "bt_bsr" and mean is None:
                mean = _mean_of_scope(chosen_n, rejected_n, loss)
            weight = penalty_weight(loss, covered.get(loss.scope or "", micro.pairs))
            preference_n = preference_losses(loss, chosen_n, rejected_n, micro.margins)
            penalty_n, penalty_share = _penalty(loss, chosen_n, rejected_n, mean, total)
            backward((preference_n.sum() / total + weight * penalty_share) * world_size())
        measured.append(_measure(preference_n, penalty_n, weight, output, micro))
    return _outcome(measured, total)


def preference_losses(
    loss: LossSettings, chosen_n: Tensor, rejected_n: Tensor, margins: Sequence[float] | None
) -> Tensor:
    """The preference term of ``loss`` for every pair, [n]."""
    if loss.name == "bt_hinge":
        assert loss.hinge_margin is not None
        return losses.bt_hinge(chosen_n, rejected_n, loss.hinge_margin)
    if loss.name == "bt_norm":
        return losses.bt_norm(chosen_n, rejected_n)
    if loss.name == "bt_dr":
        return losses.bt_dr(chosen_n, rejected_n)
    margin_n = None if margins is None else chosen_n.new_tensor(margins)
    return losses.bt(chosen_n, rejected_n, margin_n)


def penalty_weight(loss: LossSettings, pairs: int) -> float:
    """What multiplies the penalty of ``loss``, M being taken over ``pairs`` pairs."""
    if loss.name == "bt_bsr":
        assert loss.lambda_ is not None
        assert loss.scale is not None
        return applied_lambda(loss.lambda_, loss.scale, pairs)
    weight = loss.c if loss.name == "bt_center" else loss.lambda_
    return weight or 0.0


def _penalty(
    loss: LossSettings, chosen_n: Tensor, rejected_n: Tensor, mean: Tensor | None, total: int
) -> tuple[Tensor, Tensor]:
    """The penalty's value for every pair [n], and a scalar with the gradient of its share."""
    if loss.name == "bt_bsr":
        assert mean is not None
        penalty_n = mean.square().expand(len(chosen_n))
        return penalty_n, surrogate(chosen_n, rejected_n, mean, total)
    if loss.name == "bt_center":
        penalty_n = losses.center_penalty(chosen_n, rejected_n)
    elif loss.name == "bt_l2":
        penalty_n = losses.l2_penalty(chosen_n, rejected_n)
    else:
        penalty_n = torch.zeros_like(chosen_n)
    return penalty_n, penalty_n.sum() / total


def _mean_beforehand(
    micro_batches: Sequence[MicroBatch],
    forward: Callable[[MicroBatch], RewardOutput],
    loss: LossSettings,
) -> Tensor | None:
    """M by a pass without gradients, where M spans several micro-batches; else None."""
    if loss.name != "bt_bsr" or loss.scope == "micro" or len(micro_batches) == 1:
        return None
    with torch.no_grad():
        sides = [_sides(forward(micro).rewards_N, micro) for micro in micro_batches]
    chosen_B, rejected_B = (torch.cat(side) for side in zip(*sides, strict=True))
    return _mean_of_scope(chosen_B, rejected_B, loss)


def _mean_of_scope(chosen_n: Tensor, rejected_n: Tensor, loss: LossSettings) -> Tensor:
    """M from this rank's rewards within the scope, and all other ranks' if it is global."""
    count = chosen_n.new_tensor(2 * len(chosen_n))
    sums = torch.stack([(chosen_n + rejected_n).detach().sum(), count])
    if loss.scope == "global":
        sums = sum_over_ranks(sums)
    return sums[0] / sums[1].clamp(min=1)


def _sides(rewards_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """r_w and r_l of a micro-batch, [n] each; of an idle one, empty."""
    chosen_n, rejected_n = rewards_N[: 2 * micro.pairs].view(-1, 2).unbind(1)
    return chosen_n, rejected_n


@dataclass(frozen=True, eq=False)
class _Measured:
    """One micro-batch: sums over its pairs (preference, penalty, weighted penalty, weight)."""

    sums_4: Tensor
    rows_n5: Tensor


def _measure(
    preference_n: Tensor, penalty_n: Tensor, weight: float, output: RewardOutput, micro: MicroBatch
) -> _Measured:
    penalty = penalty_n.detach().sum()
    weights = preference_n.new_tensor(weight * micro.pairs)
    sums_4 = torch.stack([preference_n.detach().sum(), penalty, weight * penalty, weights])
    return _Measured(sums_4, measure_rows(output, micro.pairs))


@torch.no_grad()
def measure_rows(output: RewardOutput, pairs: int) -> Tensor:
    """The columns :data:`MEASURED` of the first ``pairs`` pairs of a forward, [n, 5]."""
    rewards_2n = output.rewards_N[: 2 * pairs]
    hidden_2nH = output.hidden_NH[: 2 * pairs].to(rewards_2n.dtype)
    columns = [rewards_2n[::2], rewards_2n[1::2]]
    columns += [hidden_2nH[::2].norm(dim=-1), hidden_2nH[1::2].norm(dim=-1)]
    columns.append((hidden_2nH[::2] - hidden_2nH[1::2]).norm(dim=-1))
    return torch.stack(columns, dim=1)


def _outcome(measured: Sequence[_Measured], total: int) -> Outcome:
    means_4 = sum_over_ranks(torch.stack([one.sums_4 for one in measured]).sum(0)) / total
    preference, penalty, weighted, weight = means_4.tolist()
    rows_B5 = gather_rows(torch.cat([one.rows_n5 for one in measured]))
    return Outcome(
        pairs=total,
        loss=preference + weighted,
        preference=preference,
        penalty=penalty,
        weighted_penalty=weighted,
        applied_weight=weight,
        rows_B5=rows_B5,
    )
