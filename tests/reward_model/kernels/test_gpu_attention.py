"""The GPU's attention against its definition: on a GPU, or in Triton's interpreter."""

import random

import pytest
import torch
from torch import Tensor

from reward_model.packing import pack
from tests.reward_model.conftest import GPU
from tests.reward_model.kernels.test_attention import by_definition, inputs, sequences

gpu_attention = pytest.importorskip("reward_model.kernels.gpu_attention")
attention = gpu_attention.attention

# The interpreter is slow, and multiplies no bfloat16.
_DTYPES = [torch.float32] + [torch.float16, torch.bfloat16] * (GPU == "cuda")
DTYPES = pytest.mark.parametrize("dtype", _DTYPES, ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 0.02}


def few_sequences(seed: int = 0) -> list[list[int]]:
    """The interpreter is slow."""
    chosen = sequences(seed)
    return [chosen[place] for place in (0, 2, 4, 5, 10, 13)]


@DTYPES
@pytest.mark.parametrize(
    ("causal", "heads", "key_heads", "dim", "window", "softcap"),
    [
        (True, 8, 2, 64, None, None),
        (True, 3, 3, 32, None, None),
        (True, 4, 2, 48, 96, None),
        (True, 2, 2, 20, 1, None),
        (True, 2, 1, 256, None, 5.0),
        (False, 2, 2, 32, None, None),
        (False, 2, 2, 64, 65, None),
    ],
)
@torch.no_grad()
def test_it_is_attention(
    causal: bool, heads: int, key_heads: int, dim: int, window: int | None,
    softcap: float | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    packed = pack(few_sequences(), causal=causal)
    query, key, value = inputs(len(packed.token_ids_T), heads, key_heads, dim, dtype)
    options = {"scale": dim**-0.5, "window": window, "softcap": softcap}
    wanted = by_definition(query, key, value, packed, **options)
    there = packed.to(GPU)
    on_device = [x.to(GPU) for x in (query, key, value)]
    tolerance = TOLERANCE[dtype]
    found = attention(*on_device, there, **options).cpu()
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    rows_N = packed.last_N if causal else packed.first_N
    some = torch.cat([query[:, :, rows_N], torch.full_like(query[:, :, :2], torch.nan)], dim=2)
    few = attention(some.to(GPU), *on_device[1:], there, rows_N.to(GPU), **options).cpu()
    count = len(rows_N)
    torch.testing.assert_close(
        few[:, :count].double(), wanted[:, rows_N], atol=tolerance, rtol=tolerance
    )
    assert not few[:, count:].any()


@DTYPES
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 150), (False, None)])
@torch.no_grad()
def test_a_sequence_depends_on_nothing_else(
    causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    """Rows of the same tokens carry the same numbers; what they give must have the same bits."""
    table = [x.to(GPU) for x in inputs(100, 4, 2, 64, dtype)]

    def run(batch: list[list[int]], share: bool) -> list[Tensor]:
        packed = pack(batch, causal=causal, share_prefix=share).to(GPU)
        drawn = [x[:, :, packed.token_ids_T].contiguous() for x in table]
        output = attention(*drawn, packed, scale=0.125, window=window)
        last = attention(
            drawn[0][:, :, packed.last_N], *drawn[1:], packed, packed.last_N, scale=0.1
        )
        return [
            torch.cat([output[0, packed.rows(n)], last[0, n : n + 1]]) for n in range(len(batch))
        ]

    everything = few_sequences(1)
    alone = [run([one], False)[0] for one in everything]
    order = random.Random(0).sample(range(len(everything)), 5)
    for index, found in zip(order, run([everything[i] for i in order], True), strict=True):
        assert torch.equal(found, alone[index])


@torch.no_grad()
def test_a_sequence_that_is_not_finite_spoils_no_other() -> None:
    packed = pack([[1, 2, 3], [4] * 70], causal=True).to(GPU)
    drawn = [x.to(GPU) for x in inputs(len(packed.token_ids_T), 2, 2, 32, torch.float32)]
    clean = attention(*drawn, packed, scale=0.2)
    drawn[1][0, :, 1] = torch.nan
    drawn[2][0, :, 2] = torch.inf
    found = attention(*drawn, packed, scale=0.2)
    assert not found[0, 1:3].isfinite().all()
    assert torch.equal(found[0, 3:], clean[0, 3:])
