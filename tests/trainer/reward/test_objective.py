"""The gradient of an optimiser batch does not depend on how it is cut, and BSR is exact."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from reward_model.model import RewardOutput
from trainer.reward import losses
from trainer.reward.bsr import weights
from trainer.reward.config import LossSettings
from trainer.reward.objective import MicroBatch, Outcome, accumulate_gradients

FEATURES = 6
CPU = torch.device("cpu")
SHIFT = 1.5


class ToyReward(nn.Module):
    """A reward of a "sequence" that is read as a feature vector, shifted so that |M| ≥ 1."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Linear(FEATURES, 8)
        self.head = nn.Linear(8, 1)
        with torch.no_grad():
            self.head.bias.fill_(SHIFT)
        self.to(dtype)

    def forward(self, micro: MicroBatch) -> RewardOutput:
        features = torch.tensor(micro.sequences, dtype=self.head.weight.dtype) / 10
        hidden = torch.tanh(self.body(features))
        return RewardOutput(self.head(hidden)[:, 0], hidden)


def make_pairs(count: int) -> list[list[list[int]]]:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(-20, 21, (count, 2, FEATURES), generator=generator).tolist()


def cut(pairs: Sequence[Sequence[list[int]]], size: int, margins: bool = False) -> list[MicroBatch]:
    pieces = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [
        MicroBatch(
            [side for pair in piece for side in pair],
            [pair[0][0] / 10 for pair in piece] if margins else None,
        )
        for piece in pieces
    ]


def gradient(
    micro_batches: list[MicroBatch], loss: LossSettings, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Outcome]:
    model = ToyReward(dtype)
    outcome = accumulate_gradients(micro_batches, model, Tensor.backward, loss, CPU)
    parts = [parameter.grad for parameter in model.parameters()]
    return torch.cat([part.flatten() for part in parts if part is not None]), outcome


def distance(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / one.norm())


def whole_batch_gradient(pairs: list[list[list[int]]], lambda_: float) -> Tensor:
    """The definition: mean bt + λ·M² by autograd, on the batch in one piece."""
    model = ToyReward(torch.float64)
    rewards = model(cut(pairs, len(pairs))[0]).rewards_N
    chosen, rejected = rewards[::2], rewards[1::2]
    assert abs(float(losses.mean_reward(chosen, rejected))) >= 1
    (losses.bt(chosen, rejected).mean() + lambda_ * losses.bsr_penalty(chosen, rejected)).backward()
    parts = [parameter.grad for parameter in model.parameters()]
    return torch.cat([part.flatten() for part in parts if part is not None])


GLOBAL = LossSettings(name="bt_bsr", lambda_=1.0)
MICRO = LossSettings(name="bt_bsr", lambda_=1.0, scope="micro")


@pytest.mark.parametrize("count", [64, 50])
@pytest.mark.parametrize("size", [64, 16, 7, 1])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_global_bsr_is_the_same_however_it_is_cut(
    count: int, size: int, dtype: torch.dtype, bound: float
) -> None:
    pairs = make_pairs(count)
    reference = whole_batch_gradient(pairs, lambda_=1.0)
    found, _ = gradient(cut(pairs, size), GLOBAL, dtype)
    assert distance(reference, found.double()) <= bound


@pytest.mark.parametrize("count", [64, 50])
def test_micro_bsr_is_another_objective(count: int) -> None:
    """The test above must be able to fail: M per micro-batch does fail it."""
    pairs = make_pairs(count)
    reference = whole_batch_gradient(pairs, lambda_=1.0)
    found, _ = gradient(cut(pairs, 16), MICRO)
    assert distance(reference, found) > 1e-3


@pytest.mark.parametrize(
    "loss",
    [
        LossSettings(name="bt"),
        LossSettings(name="bt_hinge", hinge_margin=1.0),
        LossSettings(name="bt_norm"),
        LossSettings(name="bt_dr"),
        LossSettings(name="bt_center", c=0.5),
        LossSettings(name="bt_l2", lambda_=0.5),
    ],
    ids=lambda loss: loss.name,
)
def test_every_loss_is_the_same_however_it_is_cut(loss: LossSettings) -> None:
    pairs = make_pairs(50)
    whole, one = gradient(cut(pairs, 50, margins=True), loss)
    pieces, many = gradient(cut(pairs, 16, margins=True), loss)
    assert distance(whole, pieces) <= 1e-12
    assert one.loss == pytest.approx(many.loss)
    torch.testing.assert_close(one.rows_B5, many.rows_B5)


def test_outcome_holds_the_parts() -> None:
    pairs = make_pairs(20)
    _, outcome = gradient(cut(pairs, 8), LossSettings(name="bt_bsr", lambda_=0.5))
    rewards = ToyReward(torch.float64)(cut(pairs, 20)[0]).rewards_N
    chosen, rejected = rewards[::2], rewards[1::2]
    penalty = float(losses.bsr_penalty(chosen, rejected))
    assert outcome.pairs == 20
    assert outcome.penalty == pytest.approx(penalty)
    assert outcome.weighted_penalty == pytest.approx(0.5 * penalty)
    assert outcome.preference == pytest.approx(float(losses.bt(chosen, rejected).mean()))
    assert outcome.loss == pytest.approx(outcome.preference + outcome.weighted_penalty)
    assert outcome.applied_weight == pytest.approx(0.5)
    assert outcome.rows_B5[:, 0].tolist() == pytest.approx(chosen.tolist())


def test_reference_scale_multiplies_by_the_pairs_in_the_scope() -> None:
    pairs = make_pairs(20)
    loss = LossSettings(name="bt_bsr", lambda_=0.1, scope="micro", scale="reference")
    found, outcome = gradient(cut(pairs, 5), loss)
    assert outcome.applied_weight == pytest.approx(0.5)

    model = ToyReward(torch.float64)
    for micro in cut(pairs, 5):  # the published code: λ·n·M² per micro-batch, mean over them
        rewards = model(micro).rewards_N
        chosen, rejected = rewards[::2], rewards[1::2]
        bt = losses.bt(chosen, rejected).mean()
        ((bt + 0.1 * 5 * losses.bsr_penalty(chosen, rejected)) / 4).backward()
    parts = [parameter.grad for parameter in model.parameters()]
    published = torch.cat([part.flatten() for part in parts if part is not None])
    assert distance(published, found) <= 1e-12


def test_idle_micro_batches_change_nothing() -> None:
    pairs = make_pairs(20)
    idle = MicroBatch([pairs[0][0]], idle=True)
    alone, one = gradient(cut(pairs, 8), GLOBAL)
    padded, two = gradient([*cut(pairs, 8), idle, idle], GLOBAL)
    assert distance(alone, padded) <= 1e-12
    assert one.loss == pytest.approx(two.loss)


def test_weights_of_the_arms() -> None:
    assert weights(1e-3, "paper", 128).squared_mean == 1e-3
    assert weights(1e-3, "paper", 128).pair_variance == pytest.approx(1e-3 / 128)
    assert weights(1e-3, "reference", 16).squared_mean == pytest.approx(16e-3)
    assert weights(1e-3, "reference", 16).pair_variance == pytest.approx(1e-3)
