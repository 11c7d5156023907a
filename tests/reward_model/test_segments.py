"""Attention with gradients computes what scoring computes, and transformers' gradients."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from reward_model.model import RewardModel
from reward_model.segments import CHUNK
from reward_model.tiles import TILE
from tests.checkpoints import DECODERS, ENCODERS, tiny_checkpoint


def ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, 300) for _ in range(length)]


def branches(seed: int) -> list[list[int]]:
    """Three responses to a prompt of several tiles, two of which part late; one that is alone."""
    rng = random.Random(seed)
    prompt = ids(rng, 2 * TILE + 20)
    middle = prompt + ids(rng, TILE)
    return [middle + ids(rng, 5), prompt + ids(rng, 90), middle + ids(rng, 200), ids(rng, 3)]


@pytest.mark.parametrize("architecture", DECODERS + ENCODERS)
def test_training_computes_the_rewards_of_scoring(tmp_path: Path, architecture: str) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path / "model", architecture))
    packed = model.pack(branches(0))
    with torch.no_grad():
        scored = model(packed).rewards_N
    trained = model(model.pack(branches(0))).rewards_N
    assert trained.requires_grad
    assert torch.allclose(trained, scored, atol=1e-5)


@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2", "modernbert"])
def test_gradients_of_long_and_branching_sequences(tmp_path: Path, architecture: str) -> None:
    path = tiny_checkpoint(tmp_path / "model", architecture)
    model = RewardModel.load(path).train()
    reference = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    sequences = [*branches(1), ids(random.Random(2), 2 * CHUNK + 40)]
    weights = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0])
    (model(model.pack(sequences)).rewards_N * weights).sum().backward()
    for weight, sequence in zip(weights, sequences, strict=True):
        (weight * reference(input_ids=torch.tensor([sequence])).logits[0, 0]).backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.classifier.named_parameters():
        if parameter.grad is not None and wanted[name].grad is not None:
            scale = wanted[name].grad.abs().max().clamp_min(1e-3)
            assert (parameter.grad - wanted[name].grad).abs().max() / scale < 1e-3, name
