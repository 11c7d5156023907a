"""A last layer that computes only the rows that are read, against one that computes all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reward_model import head
from reward_model.backbone import packed_hidden_states
from reward_model.kernels import modules
from reward_model.model import RewardModel
from reward_model.reading import last_layer
from tests.checkpoints import DECODERS, ENCODERS, FOREIGN_ENCODERS, tiny_checkpoint

SHARED = list(range(10, 100))
SEQUENCES = [[*SHARED, *range(20, 50)], [*SHARED, *range(120, 260)], [7, 8, 9], SHARED]


@pytest.fixture(scope="module", params=DECODERS + ENCODERS + FOREIGN_ENCODERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    directory = tmp_path_factory.mktemp("models") / request.param
    return RewardModel.load(tiny_checkpoint(directory, request.param))


def rows_seen(module: nn.Module, model: RewardModel) -> list[int]:
    """Rows of every call of ``module`` while scoring."""
    seen: list[int] = []

    def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0].reshape(-1, arguments[0].shape[-1]).shape[0])

    with module.register_forward_pre_hook(note), torch.inference_mode():
        model(model.pack(SEQUENCES))
    return seen


def wanted_rows(model: RewardModel) -> Tensor:
    rows_N = head.pooled_rows(model.pack(SEQUENCES), model.contract.pooling, None)
    assert rows_N is not None
    return rows_N


def test_few_rows_come_out_as_they_do_among_all(model: RewardModel) -> None:
    packed, rows_N = model.pack(SEQUENCES), wanted_rows(model)
    with torch.inference_mode():
        whole_TH = packed_hidden_states(model.backbone, packed)
        found_NH = packed_hidden_states(model.backbone, packed, rows_N)
    torch.testing.assert_close(found_NH, whole_TH[rows_N], atol=2e-5, rtol=2e-5)


def test_gradients_are_the_same(model: RewardModel) -> None:
    packed, rows_N = model.pack(SEQUENCES), wanted_rows(model)
    parameters = dict(model.backbone.named_parameters())
    weight_H = torch.linspace(-1, 1, model.classifier.config.hidden_size)

    def gradients(hidden_NH: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(
            (hidden_NH @ weight_H).square().sum(), list(parameters.values()), allow_unused=True
        )
        return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

    whole = gradients(packed_hidden_states(model.backbone, packed)[rows_N])
    few = gradients(packed_hidden_states(model.backbone, packed, rows_N))
    assert few.keys() == whole.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():  # a key's bias has none but rounding
        torch.testing.assert_close(few[name], gradient, atol=1e-5 * largest, rtol=1e-4)


def test_the_last_layer_ends_with_the_rows_that_are_read(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kernels take a layer's weights without calling it.
    monkeypatch.setattr(modules, "linear_suits", lambda *_: False)
    layer = last_layer(model.backbone)
    if model.classifier.config.model_type == "albert":
        assert layer is None, "its layers are one and the same"
        return
    assert layer is not None
    rows = len(model.pack(SEQUENCES).token_ids_T)
    assert rows > 64
    ends = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    calls = [rows_seen(module, model) for module in ends]
    assert all(call in ([64], [rows, 64]) for call in calls), calls
    assert [64] in calls
    for module in layer.modules():
        if isinstance(module, modules.KernelSelfAttention):
            assert rows_seen(module.query, model) == [64], "keys need no queries"
    first = next(m for m in model.backbone.modules() if isinstance(m, nn.ModuleList))[0]
    for module in first.modules():
        if isinstance(module, nn.Linear):
            assert rows_seen(module, model) == [rows]


def test_checkpointed_activations(tmp_path: Path) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, "qwen2")).train()

    def gradient() -> Tensor:
        model.zero_grad()
        model(model.pack(SEQUENCES)).rewards_N.square().sum().backward()
        weight = model.backbone.get_input_embeddings().weight.grad
        assert weight is not None
        return weight.clone()

    plain = gradient()
    model.classifier.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(), plain)
