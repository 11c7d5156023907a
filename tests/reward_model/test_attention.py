"""The products of scoring's attention against PyTorch's own, and under autocast."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model import attend as attend_module
from reward_model.attend import attend
from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint


def matrices(count: int, queries: int = 64, keys: int = 128, dim: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((count, queries, dim), (count, keys, dim), (count, keys, dim))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def hidden(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(shape).masked_fill_(
        torch.rand(shape, generator=generator) < 0.3, float("-inf")
    )
    mask[..., 0] = 0.0  # a row that sees nothing would be NaN
    return mask


@pytest.mark.parametrize("mask", [hidden(64, 128), hidden(3, 1, 128), hidden(3, 64, 128)])
@pytest.mark.parametrize("at_once", [1, 2 * 64 * 128, 1 << 20])
def test_attend_is_scaled_dot_product_attention(
    mask: Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend_module, "LOGITS", at_once)
    query, key, value = matrices(6)
    wide = mask.expand(3, 64, 128).repeat_interleave(2, dim=0) if mask.dim() == 3 else mask
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=wide, scale=0.2)
    found = attend(query, key, value, mask, scale=0.2)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_softcap_by_its_definition() -> None:
    query, key, value = matrices(2)
    mask = hidden(64, 128)
    logits = 5.0 * torch.tanh(query @ key.transpose(1, 2) * 0.2 / 5.0) + mask
    found = attend(query, key, value, mask, scale=0.2, softcap=5.0)
    torch.testing.assert_close(found, torch.softmax(logits, -1) @ value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("queries", "keys"), [(64, 128), (64, 1024), (256, 1536), (8, 2048), (64, 4096)]
)
@torch.no_grad()
def test_a_matrix_does_not_depend_on_its_neighbours(
    dtype: torch.dtype, queries: int, keys: int
) -> None:
    query, key, value = (x.to(dtype) for x in matrices(7, queries, keys, dim=64))
    mask = hidden(queries, keys).to(dtype)
    together = attend(query, key, value, mask, scale=0.2)
    for place in range(7):
        some = slice(place, place + 1)
        alone = attend(query[some], key[some], value[some], mask, scale=0.2)
        assert torch.equal(alone, together[some])


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "bert", "modernbert"])
def test_scoring_under_autocast(tmp_path: Path, architecture: str) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, architecture))
    packed = model.pack([list(range(5, 75)), list(range(9, 30))])
    with torch.inference_mode():
        exact = model(packed).rewards_N
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(model.pack([list(range(5, 75)), list(range(9, 30))])).rewards_N
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(rough, exact)
