"""The same promises on a CUDA device."""

import random
from pathlib import Path

import pytest
import torch

from reward_model import attention
from reward_model.bases import Bases
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.self_test import self_test
from tests.adapters import tiny_adapter
from tests.checkpoints import DECODERS, ENCODERS, tiny_checkpoint

gpu_rows = pytest.importorskip("reward_model.kernels.gpu_rows")

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def sequences() -> list[list[int]]:
    rng = random.Random(0)
    prompt = [rng.randrange(3, 300) for _ in range(150)]
    own = [[rng.randrange(3, 300) for _ in range(length)] for length in (1, 64, 65, 200)]
    return [*own, *([*prompt, *one] for one in own)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("architecture", DECODERS + ENCODERS)
def test_a_score_does_not_depend_on_its_batch(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, architecture), dtype=dtype, device="cuda")
    result = self_test(model, rounds=4)
    assert result.differing == 0


@pytest.mark.parametrize("architecture", DECODERS + ENCODERS)
def test_scores_are_those_of_the_cpu(tmp_path: Path, architecture: str) -> None:
    path = tiny_checkpoint(tmp_path, architecture)
    wanted = score_token_ids(RewardModel.load(path), sequences())
    got = score_token_ids(RewardModel.load(path, device="cuda"), sequences())
    assert got == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
def test_layers_that_are_computed_by_kernels(
    tmp_path: Path, architecture: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    head = {"head_dim": 64} if architecture == "qwen3" else {}
    path = tiny_checkpoint(tmp_path, architecture, **shape, **head)
    rotated: list[torch.Size] = []
    rotate = gpu_rows.rotate
    monkeypatch.setattr(
        gpu_rows, "rotate", lambda x, *more: (rotated.append(x.shape), rotate(x, *more))[1]
    )
    model = RewardModel.load(path, dtype=dtype, device="cuda")
    assert self_test(model, rounds=4).differing == 0
    assert rotated
    wanted = score_token_ids(RewardModel.load(path), sequences())
    tolerance = 1e-3 if dtype == "float32" else 0.2
    assert score_token_ids(model, sequences()) == pytest.approx(wanted, abs=tolerance)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "modernbert"])
def test_gradients_are_those_of_the_cpu(tmp_path: Path, architecture: str) -> None:
    path = tiny_checkpoint(tmp_path, architecture)
    grads = []
    for device in ("cpu", "cuda"):
        model = RewardModel.load(path, device=device).train()
        model(model.pack(sequences())).rewards_N.sum().backward()
        grads.append(model.classifier.get_input_embeddings().weight.grad.cpu())
    assert torch.allclose(*grads, rtol=1e-2, atol=1e-3 * float(grads[0].abs().max()))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "bert", "modernbert"])
def test_gradients_in_half_precision(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 256, "num_attention_heads": 4}
    grouped = {"num_key_value_heads": 2} if architecture in DECODERS else {}
    path = tiny_checkpoint(tmp_path, architecture, **shape, **grouped)
    called: list[torch.Size] = []
    own = attention.varlen_attention
    monkeypatch.setattr(
        attention,
        "varlen_attention",
        lambda query, *more, **options: (
            called.append(query.shape),
            own(query, *more, **options),
        )[1],
    )
    grads = []
    for device in ("cpu", "cuda"):
        model = RewardModel.load(path, device=device).train()
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            model(model.pack(sequences())).rewards_N.sum().backward()
        named = dict(model.classifier.named_parameters())
        grads.append({name: x.grad.cpu() for name, x in named.items() if x.grad is not None})
    assert called
    wanted, got = grads
    assert wanted.keys() == got.keys()
    # float16 rounds to 0.007 of a gradient on a CPU, bfloat16 to 0.07; the bias of keys has none.
    for name, grad in wanted.items():
        assert (got[name] - grad).norm() <= 0.02 * grad.norm() + 1e-3, name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_an_adapters_score_does_not_depend_on_its_batch(
    tmp_path: Path, dtype: str, rank: int
) -> None:
    base = tiny_checkpoint(tmp_path / "base", "qwen2", "causal")
    adapter = tiny_adapter(tmp_path / "adapter", base, r=rank)
    bases = Bases()
    model = RewardModel.load(adapter, dtype=dtype, device="cuda", bases=bases)
    other = RewardModel.load(adapter, dtype=dtype, device="cuda", bases=bases)
    assert self_test(model, rounds=4).differing == 0
    pointers = [one.backbone.embed_tokens.weight.data_ptr() for one in (model, other)]
    assert pointers[0] == pointers[1]
    wanted = score_token_ids(RewardModel.load(adapter), sequences())
    tolerance = 1e-3 if dtype == "float32" else 0.2
    assert score_token_ids(model, sequences()) == pytest.approx(wanted, abs=tolerance)
