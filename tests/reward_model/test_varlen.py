"""Attention in one call is attention segment by segment: the lengths and rows that it is given.

Flash attention needs a GPU (tests/reward_model/test_cuda.py); here a plain loop over its arguments
stands in for it.
"""

import random

import pytest
import torch
from torch import Tensor

from reward_model import varlen
from reward_model.packing import pack
from reward_model.segments import segment_attention
from reward_model.tiles import TILE, Segment
from reward_model.varlen import lengths_of, varlen_attention, varlen_suits


def test_lengths_of_segments_that_share() -> None:
    """A prompt of 4 rows, two that follow it, and one that follows the second of these."""
    segments = [
        Segment(4, 0, ()),
        Segment(2, 4, (0,)),
        Segment(3, 4, (0,)),
        Segment(1, 7, (0, 2)),
    ]
    found = lengths_of(segments)
    assert found.queries == [0, 4, 6, 9, 10]
    assert found.keys == [0, 4, 10, 17, 25]
    assert (found.max_queries, found.max_keys) == (4, 8)
    assert found.rows_K == [
        *(0, 1, 2, 3), *(0, 1, 2, 3, 4, 5), *(0, 1, 2, 3, 6, 7, 8), *(0, 1, 2, 3, 6, 7, 8, 9)
    ]  # fmt: skip


def test_segments_that_share_nothing_need_no_copies() -> None:
    found = lengths_of([Segment(3, 0, ()), Segment(5, 0, ())])
    assert found.rows_K is None
    assert found.queries == found.keys == [0, 3, 8]


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    max_queries: int,
    max_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What flash attention documents: windows around the diagonal that ends at the last key."""
    outputs = []
    assert max_queries == int(queries.diff().max())
    assert max_keys == int(keys.diff().max())
    for index in range(len(queries) - 1):
        own = slice(int(queries[index]), int(queries[index + 1]))
        seen = slice(int(keys[index]), int(keys[index + 1]))
        q, k, v = query[own], key[seen], value[seen]
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q, k) * scale
        at = torch.arange(len(q))[:, None] + len(k) - len(q)
        ahead = torch.arange(len(k))[None] - at
        left, right = window_size
        hidden = torch.zeros_like(ahead, dtype=torch.bool)
        hidden |= (ahead > right) if right >= 0 else False
        hidden |= (-ahead > left) if left >= 0 else False
        weights = logits.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_attention_of_each_segment(
    monkeypatch: pytest.MonkeyPatch, causal: bool, window: int | None, grouped: bool
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", plain)
    monkeypatch.setattr(varlen, "GROUPED", grouped)
    rng = random.Random(0)
    prompt = [rng.randrange(300) for _ in range(2 * TILE)]
    sequences = [prompt + [rng.randrange(300) for _ in range(n)] for n in (5, 90, 17)]
    packed = pack(sequences, causal=causal)
    assert packed.filler
    torch.manual_seed(0)
    rows = len(packed.token_ids_T)
    query = torch.randn(1, 4, rows, 8, requires_grad=True)
    key, value = (torch.randn(1, 2, rows, 8, requires_grad=True) for _ in range(2))
    inputs = (query, key, value)
    weights = torch.randn(1, rows, 4, 8)
    outputs, grads = [], []
    for attention in (segment_attention, varlen_attention):
        output = attention(*inputs, packed, scale=0.3, window=window)
        outputs.append(output)
        grads.append(torch.autograd.grad((output * weights).sum(), inputs))
    assert torch.allclose(*outputs, atol=1e-5)
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_it_is_for_gpus() -> None:
    assert not varlen_suits(torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16), None)
