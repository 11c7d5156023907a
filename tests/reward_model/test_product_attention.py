"""Attention with gradients by products, against PyTorch's own and against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model import product_attention, row_cuts
from reward_model.product_attention import (
    ProductAttention,
    attend_with_gradient,
    filled_up,
    suits,
)


def inputs(
    dtype: torch.dtype, matrices: int = 3, queries: int = 10, keys: int = 14
) -> list[Tensor]:
    """Query, key and value [1, N, rows, D] as layers give them: token by token in memory."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, rows, matrices, 8, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for rows in (queries, keys, keys)
    ]


def causal(queries: int = 10, keys: int = 14) -> Tensor:
    hidden = torch.ones(queries, keys).triu(keys - queries + 1).bool()
    return torch.zeros(queries, keys, dtype=torch.float64).masked_fill_(hidden, float("-inf"))


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("mask", [None, causal()])
@pytest.mark.parametrize(("at_once", "kept"), [(1, 512), (1 << 20, 512), (2 * 140, 0)])
def test_gradients_are_those_of_finite_differences(
    mask: Tensor | None, at_once: int, kept: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cuts, "needed", lambda: tiles)
    monkeypatch.setattr(product_attention, "LOGITS", at_once)
    monkeypatch.setattr(product_attention, "KEPT_KEYS", kept)
    query, key, value = inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda *three: ProductAttention.apply(*three, mask, 0.3), (query, key, value)
    )
    wanted = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    found = ProductAttention.apply(query, key, value, mask, 0.3)
    torch.testing.assert_close(found, wanted)


def test_bfloat16_is_as_near_to_the_truth_as_the_fused_kernel() -> None:
    half = inputs(torch.bfloat16, queries=70, keys=90)
    exact = [x.detach().double().requires_grad_() for x in half]
    mask = causal(70, 90)

    def gradients(own: list[Tensor], output: Tensor) -> list[Tensor]:
        return [grad.double() for grad in torch.autograd.grad(output.sum(), own)]

    truth = gradients(exact, F.scaled_dot_product_attention(*exact, mask, scale=0.3))
    ours = gradients(half, attend_with_gradient(*half, mask.to(torch.bfloat16), scale=0.3))
    fused = gradients(
        half, F.scaled_dot_product_attention(*half, mask.to(torch.bfloat16), scale=0.3)
    )
    for true, own, other in zip(truth, ours, fused, strict=True):
        assert (own - true).norm() <= 2 * (other - true).norm() + 1e-3 * true.norm()


def test_few_lengths_are_computed_with_matrix_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cuts, "needed", lambda: True)
    lengths = range(1, 2049)
    assert all(length <= filled_up(length) < length + max(32, length / 8) for length in lengths)
    assert len({filled_up(length) for length in lengths}) == 32
    monkeypatch.setattr(row_cuts, "needed", lambda: False)
    assert all(filled_up(length) == length for length in lengths)


def test_where_products_are_taken() -> None:
    single = torch.zeros(1, 1, 1, 8)
    assert not suits(single)
    assert suits(single.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert suits(single)
