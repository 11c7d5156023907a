"""Attention by the kernels against its definition, and that a row's bits are its own."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from reward_model.kernels.attention import attention, attention_suits
from reward_model.kernels.library import Isa, isa
from reward_model.packing import PackedBatch, pack
from tests.reward_model.conftest import LEVELS_AND_DTYPES

pytestmark = pytest.mark.skipif(isa() is Isa.NONE, reason="no kernels on this machine")
everywhere = pytest.mark.parametrize(
    ("kernels", "dtype"), LEVELS_AND_DTYPES, indirect=["kernels"], ids=str
)
Attention = Callable[..., Tensor]
LENGTHS = (1, 7, 63, 64, 65, 145, 300, 520, 1100)


def sequences(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    prompt = [rng.randrange(1, 100) for _ in range(200)]
    own = [[rng.randrange(1, 100) for _ in range(length)] for length in LENGTHS]
    return own + [prompt + one for one in own[:5]] + [own[3]]


def inputs(
    rows: int, heads: int, key_heads: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """[1, heads, rows, dim], as projections give them: rows apart by all heads."""
    generator = torch.Generator().manual_seed(rows)
    query, key, value = (
        torch.randn(1, rows, count, dim, generator=generator).to(dtype).transpose(1, 2)
        for count in (heads, key_heads, key_heads)
    )
    return query, key, value


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch,
    scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """Sequence by sequence in float64, [1, T, heads, D]."""
    group = query.shape[1] // key.shape[1]
    output = torch.zeros_like(query, dtype=torch.float64)
    for n in range(len(packed)):
        rows_L = packed.rows(n)
        own = query[0, :, rows_L].double()
        keys, values = (x[0, :, rows_L].double().repeat_interleave(group, 0) for x in (key, value))
        logits = own @ keys.transpose(1, 2) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        place = torch.arange(len(rows_L))
        distance = place[:, None] - place[None]
        hidden = (distance < 0) & torch.tensor(packed.causal)
        if window is not None:
            hidden |= distance.abs() >= window
        weights = torch.softmax(logits.masked_fill(hidden, float("-inf")), dim=-1)
        output[0, :, rows_L] = weights @ values
    return output.transpose(1, 2)


def assert_is_attention(
    attention: Attention, packed: PackedBatch, drawn: Sequence[Tensor], tolerance: float,
    device: str = "cpu", window: int | None = None, softcap: float | None = None,
) -> None:  # fmt: skip
    """Of all rows, and of those that a score is read from."""
    query, key, value = drawn
    scale = query.shape[3] ** -0.5
    wanted = by_definition(query, key, value, packed, scale, window, softcap)
    there, key, value = packed.to(device), key.to(device), value.to(device)
    options = {"scale": scale, "window": window, "softcap": softcap}
    found = attention(query.to(device), key, value, there, **options).cpu()
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    rows_N = packed.last_N if packed.causal else packed.first_N
    some = torch.cat([query[:, :, rows_N], torch.full_like(query[:, :, :2], torch.nan)], dim=2)
    few = attention(some.to(device), key, value, there, rows_N.to(device), **options).cpu()
    count = len(rows_N)
    torch.testing.assert_close(
        few[:, :count].double(), wanted[:, rows_N], atol=tolerance, rtol=tolerance
    )
    assert not few[:, count:].any()


def assert_rows_are_their_own(
    attention: Attention, table: Sequence[Tensor], everything: list[list[int]], count: int,
    causal: bool, window: int | None, device: str = "cpu", seed: int = 0,
) -> None:  # fmt: skip
    """Rows of the same tokens carry the same numbers; what they give must have the same bits."""
    table = [x.to(device) for x in table]

    def run(batch: list[list[int]], share: bool) -> list[Tensor]:
        packed = pack(batch, causal=causal, share_prefix=share).to(device)
        drawn = [x[:, :, packed.token_ids_T].contiguous() for x in table]
        output = attention(*drawn, packed, scale=0.125, window=window)
        last = attention(
            drawn[0][:, :, packed.last_N], *drawn[1:], packed, packed.last_N, scale=0.1
        )
        return [
            torch.cat([output[0, packed.rows(n)], last[0, n : n + 1]]) for n in range(len(batch))
        ]

    order = random.Random(seed).sample(range(len(everything)), count)
    for index, found in zip(order, run([everything[i] for i in order], True), strict=True):
        assert torch.equal(found, run([everything[index]], False)[0])


def assert_nothing_spoils_others(attention: Attention, device: str = "cpu") -> None:
    packed = pack([[1, 2, 3], [4] * 70], causal=True).to(device)
    drawn = [x.to(device) for x in inputs(len(packed.token_ids_T), 2, 2, 32, torch.float32)]
    clean = attention(*drawn, packed, scale=0.2)
    drawn[1][0, :, 1] = torch.nan
    drawn[2][0, :, 2] = torch.inf
    found = attention(*drawn, packed, scale=0.2)
    assert not found[0, 1:3].isfinite().all()
    assert torch.equal(found[0, 3:], clean[0, 3:])


@everywhere
@pytest.mark.parametrize(
    ("causal", "heads", "key_heads", "dim", "window", "softcap"),
    [
        (True, 8, 2, 64, None, None),
        (True, 3, 3, 32, None, None),
        (True, 4, 2, 48, 96, None),
        (True, 4, 4, 20, 1, None),
        (True, 2, 1, 256, None, 5.0),
        (False, 4, 4, 32, None, None),
        (False, 2, 2, 64, 65, None),
    ],
)
@torch.no_grad()
def test_it_is_attention(
    kernels: Isa, causal: bool, heads: int, key_heads: int, dim: int, window: int | None,
    softcap: float | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    packed = pack(sequences(), causal=causal)
    drawn = inputs(len(packed.token_ids_T), heads, key_heads, dim, dtype)
    assert attention_suits(*drawn)
    tolerance = 0.02 if dtype is torch.bfloat16 else 2e-6
    assert_is_attention(attention, packed, drawn, tolerance, window=window, softcap=softcap)


@everywhere
@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_sequence_depends_on_nothing_else(kernels: Isa, causal: bool, dtype: torch.dtype) -> None:
    table = inputs(100, 4, 2, 64, dtype)
    assert attention_suits(*table)
    for seed in range(3):
        assert_rows_are_their_own(attention, table, sequences(1), 9, causal, 150, seed=seed)


@torch.no_grad()
def test_a_sequence_that_is_not_finite_spoils_no_other() -> None:
    assert_nothing_spoils_others(attention)


def test_what_stays_with_pytorch() -> None:
    with torch.no_grad():
        query, key, value = inputs(64, 2, 2, 32, torch.float32)
        assert attention_suits(query, key, value)
        assert not attention_suits(query.double(), key.double(), value.double())
        assert not attention_suits(*inputs(64, 2, 2, 264, torch.float32))
        assert not attention_suits(query.transpose(2, 3), key, value)
    assert not attention_suits(query, key, value), "gradients are on"
