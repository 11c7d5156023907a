import math

import numpy as np
import pytest
import torch

from reward_model.model import RewardOutput
from trainer.reward.examples import Example
from trainer.reward.validation import ScoredGroup, measure_groups, measure_pairs


def forward(sequences: list[list[int]]) -> RewardOutput:
    """The reward of a sequence is its first token; h = (reward, 2·reward)."""
    rewards = torch.tensor([float(ids[0]) for ids in sequences])
    return RewardOutput(rewards, torch.stack([rewards, 2 * rewards], dim=1))


def example(chosen: int, rejected: int) -> Example:
    sides = (np.asarray([value, 1], dtype=np.int32) for value in (chosen, rejected))
    return Example(*sides, margin=0.0, cost=4)


def test_pairs_by_hand() -> None:
    examples = [example(3, 1), example(2, 2), example(1, 4)]
    found = measure_pairs(examples, forward, max_tokens=8)  # type: ignore[arg-type]
    assert found.values["accuracy"] == pytest.approx(1 / 3)
    assert found.values["ties"] == pytest.approx(1 / 3)
    assert found.values["margin"] == pytest.approx(-1 / 3)
    assert found.values["reward_mean"] == pytest.approx(13 / 6)
    assert found.values["h_norm_mean"] == pytest.approx(13 / 6 * math.sqrt(5))
    assert found.values["h_difference_mean"] == pytest.approx(5 / 3 * math.sqrt(5))
    assert found.rewards_N.tolist() == [3, 1, 2, 2, 1, 4]


def test_groups_by_hand() -> None:
    groups = [
        ScoredGroup([(1,), (2,), (3,)], [0.0, 5.0, 4.5]),  # the pair 5.0, 4.5 is too close
        ScoredGroup([(2,), (2,)], [1.0, 3.0]),  # equal rewards: a tie, and τ undefined
        ScoredGroup([(7,)], [1.0]),
    ]
    found = measure_groups(groups, forward, min_gold_gap=1.0, max_tokens=2)  # type: ignore[arg-type]
    assert found.values["pairs"] == 3
    assert found.values["accuracy"] == pytest.approx(2 / 3)
    assert found.values["ties"] == pytest.approx(1 / 3)
    assert found.values["tau"] == pytest.approx(1 / 3)
    assert found.values["tau_undefined"] == 2
    assert found.rewards_N.tolist() == [1, 2, 3, 2, 2, 7]
