"""``bt`` and ``bt_center`` against TRL's RewardTrainer.compute_loss: same weights, one batch."""

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer

from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from trainer.reward.config import LossSettings
from trainer.reward.objective import MicroBatch, accumulate_gradients

PROMPT = list(range(5, 90))
PAIRS = [
    ([*PROMPT, 100, 101, 102], [*PROMPT, 110]),
    (PROMPT[:20] + [7] * 30, PROMPT[:20] + [9] * 5),
    ([33, 34], [35, 36, 37, 38]),
]
MARGINS = [0.5, 0.0, 1.0]


def trl_loss(model: nn.Module, pad_id: int, center: float | None) -> Tensor:
    """TRL's loss function, on the padded batch that its collator makes: chosen, then rejected."""
    sequences = [pair[0] for pair in PAIRS] + [pair[1] for pair in PAIRS]
    longest = max(map(len, sequences))
    inputs = {
        "input_ids": torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in sequences]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]
        ),
        "margin": torch.tensor(MARGINS),
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=center),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    loss: Tensor = RewardTrainer.compute_loss(trainer, model, inputs)
    return loss


@pytest.mark.parametrize(
    ("loss", "center"),
    [(LossSettings(name="bt"), None), (LossSettings(name="bt_center", c=0.01), 0.01)],
    ids=["bt", "bt_center"],
)
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_loss_and_gradient_equal_trl(
    tmp_path: Path, architecture: str, loss: LossSettings, center: float | None
) -> None:
    path = tiny_checkpoint(tmp_path / "model", architecture)
    theirs = AutoModelForSequenceClassification.from_pretrained(path)
    expected = trl_loss(theirs, theirs.config.pad_token_id, center)
    expected.backward()

    ours = RewardModel.load(path)
    sequences = [side for pair in PAIRS for side in pair]
    outcome = accumulate_gradients(
        [MicroBatch(sequences[:4], MARGINS[:2]), MicroBatch(sequences[4:], MARGINS[2:])],
        lambda micro: ours(ours.pack(micro.sequences)),
        Tensor.backward,
        loss,
        torch.device("cpu"),
    )
    assert outcome.loss == pytest.approx(expected.item(), abs=1e-5)
    gradients = dict(ours.classifier.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            assert gradients[name].grad is None
            continue
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
