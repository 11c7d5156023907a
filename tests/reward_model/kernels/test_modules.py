"""Models that score with the kernels: exact, and what transformers computes."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from reward_model.kernels.layers import KernelEncoderLayer, KernelLayer
from reward_model.kernels.library import Isa
from reward_model.kernels.linear import KernelLinear
from reward_model.kernels.modules import (
    KernelAttention,
    KernelEmbeddings,
    KernelIntermediate,
    KernelLayerNorm,
    KernelMLP,
    KernelNorm,
    KernelOutput,
    KernelSelfAttention,
)
from reward_model.lora import LoraLinear
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.self_test import self_test
from tests.checkpoints import tiny_checkpoint
from tests.reward_model.test_architectures import sequences

ALIKE = ["llama", "mistral", "qwen2", "qwen3"]
OF_DECODERS = {KernelNorm, KernelMLP, KernelAttention, KernelLayer}
OF_ENCODERS = {
    KernelIntermediate,
    KernelOutput,
    KernelLayerNorm,
    KernelEncoderLayer,
    KernelEmbeddings,
    KernelSelfAttention,
}
WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}


def kinds(model: nn.Module) -> set[type]:
    """Which of our layers a model has."""
    ours = {KernelLinear} | OF_DECODERS | OF_ENCODERS
    return {kind for kind in ours for module in model.modules() if isinstance(module, kind)}


@pytest.mark.parametrize("architecture", [*ALIKE, "gemma2", "bert", "roberta", "modernbert"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_exact_and_those_of_transformers(
    tmp_path: Path, kernels: Isa, architecture: str, dtype: str
) -> None:
    sizes = {} if architecture == "qwen3" else WIDE
    if architecture in ALIKE:
        sizes = WIDE | {"num_key_value_heads": 2, "head_dim": 32}
    path = tiny_checkpoint(tmp_path, architecture, **sizes)
    model = RewardModel.load(path, dtype=dtype)
    assert self_test(model).passed
    expected = {KernelLinear}
    if architecture in ALIKE:
        expected |= OF_DECODERS
    elif architecture in ("bert", "roberta"):
        expected |= OF_ENCODERS
    elif architecture == "modernbert":
        expected |= {KernelLayerNorm}
    assert kinds(model) == (set() if kernels is Isa.NONE else expected)
    # In half precision too the reference is computed in float32, from the weights as rounded.
    reference = AutoModelForSequenceClassification.from_pretrained(
        path, dtype=model.dtype, attn_implementation="eager"
    )
    reference.float().eval()
    mixed = sequences()
    with torch.inference_mode():
        wanted = [reference(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in mixed]
    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert score_token_ids(model, mixed) == pytest.approx(wanted, abs=tolerance)


def test_gradients_stay_with_pytorch(tmp_path: Path, kernels: Isa) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, "qwen2", **WIDE), dtype="bfloat16").train()
    model(model.pack(sequences())).rewards_N.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_names_states_and_copies_stay(tmp_path: Path, kernels: Isa) -> None:
    path = tiny_checkpoint(tmp_path, "qwen2", **WIDE)
    model = RewardModel.load(path, dtype="bfloat16")
    plain = AutoModelForSequenceClassification.from_pretrained(path)
    assert list(model.classifier.state_dict()) == list(plain.state_dict())
    names = [type(module).__name__.removeprefix("Kernel") for module in model.classifier.modules()]
    assert [name.removeprefix("Cut") for name in names] == [
        type(module).__name__ for module in plain.modules()
    ]
    scores = score_token_ids(model, sequences())
    assert score_token_ids(copy.deepcopy(model), sequences()) == scores


def test_adapted_layers_take_the_same_way(tmp_path: Path, kernels: Isa) -> None:
    """A feed-forward layer whose gate carries an adapter is computed layer by layer."""
    model = RewardModel.load(tiny_checkpoint(tmp_path, "qwen2", **WIDE), dtype="bfloat16")
    plain = score_token_ids(model, sequences())
    for module in model.classifier.modules():
        if isinstance(gate := getattr(module, "gate_proj", None), nn.Linear):
            a, b = torch.randn(4, gate.in_features), torch.zeros(gate.out_features, 4)
            module.gate_proj = LoraLinear(gate, a, b, 1.0)
    assert self_test(model).passed
    assert score_token_ids(model, sequences()) == pytest.approx(plain, abs=0.05)
