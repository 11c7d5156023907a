"""Layers in one call: bit for bit their parts one after another."""

from pathlib import Path

import pytest
import torch
from torch import nn

from reward_model.backbone import packed_hidden_states
from reward_model.kernels import layers
from reward_model.kernels.layers import KernelEncoderLayer, KernelLayer
from reward_model.kernels.library import level
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from tests.checkpoints import tiny_checkpoint
from tests.reward_model.test_architectures import sequences

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4,
        "num_hidden_layers": 3}  # fmt: skip
GROUPED = WIDE | {"num_key_value_heads": 2, "head_dim": 32}
SIZES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 16},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "bert": WIDE,
    "roberta": WIDE,
}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[layers.Parts]:
    """The layers that are computed in one call from now on."""
    made: list[layers.Parts] = []

    def layer(parts: layers.Parts, *arguments: object) -> torch.Tensor:
        made.append(parts)
        return real(parts, *arguments)  # type: ignore[arg-type]

    real = layers.layer
    monkeypatch.setattr(layers, "layer", layer)
    return made


def loaded(path: Path, architecture: str, dtype: str = "bfloat16", **sizes: int) -> RewardModel:
    """A random model whose norms and biases are not those of a fresh one: 1 and 0."""
    model = RewardModel.load(tiny_checkpoint(path, architecture, **sizes), dtype=dtype)
    known = torch.float32 if dtype == "float32" else torch.bfloat16
    if not level(known, torch.device("cpu")):
        pytest.skip(f"no linear layers of the kernels in {dtype} on this machine")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_call_has_the_bits_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[object], architecture: str,
    dtype: str,
) -> None:  # fmt: skip
    model = loaded(tmp_path, architecture, dtype, **SIZES[architecture])
    whole.clear()  # loading tries the model
    scores = score_token_ids(model, sequences())
    assert len(whole) == 2, "all layers but the last, which is asked for few rows"
    monkeypatch.setattr(layers, "wants_all_rows", lambda options: False)
    assert score_token_ids(model, sequences()) == scores
    assert len(whole) == 2


@pytest.mark.parametrize("architecture", ["qwen2", "bert"])
def test_every_row_of_every_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[object], architecture: str
) -> None:
    """The last layer too, where all rows are wanted."""
    model = loaded(tmp_path, architecture, **SIZES[architecture])
    packed = model.pack(sequences())
    whole.clear()
    with torch.inference_mode():
        together = packed_hidden_states(model.backbone, packed)
        assert len(whole) == 3
        monkeypatch.setattr(layers, "wants_all_rows", lambda options: False)
        assert torch.equal(packed_hidden_states(model.backbone, packed), together)
    assert len(whole) == 3


@pytest.mark.parametrize("architecture", ["qwen2", "bert"])
def test_a_hook_on_a_part_is_called(tmp_path: Path, whole: list[object], architecture: str) -> None:
    model = loaded(tmp_path, architecture, **SIZES[architecture])
    layer = next(
        module for module in model.modules()
        if isinstance(module, KernelLayer | KernelEncoderLayer)
    )  # fmt: skip
    norms = [part for name, part in layer.named_modules() if "norm" in name.lower()]
    whole.clear()
    seen: list[nn.Module] = []
    norms[0].register_forward_hook(lambda module, inputs, output: seen.append(module))
    score_token_ids(model, sequences())
    assert seen == [norms[0]]
    assert len(whole) == 1


def test_weights_that_change_are_read_anew(tmp_path: Path, whole: list[object]) -> None:
    model = loaded(tmp_path, "qwen2", **SIZES["qwen2"])
    whole.clear()
    before = score_token_ids(model, sequences())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.0.mlp" in name:
                parameter *= 2
    after = score_token_ids(model, sequences())
    assert len(whole) == 4
    assert before != after
    fresh = loaded(tmp_path, "qwen2", **SIZES["qwen2"])
    fresh.load_state_dict(model.state_dict())
    assert score_token_ids(fresh, sequences()) == after


def test_weights_that_are_not_kept_packed_are_packed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[object]
) -> None:
    """A large model's, of which never more than one is there twice."""
    monkeypatch.setattr("reward_model.kernels.linear.KEPT_BYTES", 0)
    score_token_ids(loaded(tmp_path, "qwen2", **SIZES["qwen2"]), sequences())
    assert whole == []
