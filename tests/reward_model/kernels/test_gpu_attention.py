"""The GPU's attention against its definition: on a GPU, or in Triton's interpreter."""

import pytest
import torch

from reward_model.packing import pack
from tests.reward_model.conftest import GPU
from tests.reward_model.kernels.test_attention import (
    assert_is_attention,
    assert_nothing_spoils_others,
    assert_rows_are_their_own,
    inputs,
    sequences,
)

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
    drawn = inputs(len(packed.token_ids_T), heads, key_heads, dim, dtype)
    assert_is_attention(
        attention, packed, drawn, TOLERANCE[dtype], GPU, window=window, softcap=softcap
    )


@DTYPES
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 150), (False, None)])
@torch.no_grad()
def test_a_sequence_depends_on_nothing_else(
    causal: bool, window: int | None, dtype: torch.dtype
) -> None:
    table = inputs(100, 4, 2, 64, dtype)
    assert_rows_are_their_own(attention, table, few_sequences(1), 5, causal, window, GPU)


@torch.no_grad()
def test_a_sequence_that_is_not_finite_spoils_no_other() -> None:
    assert_nothing_spoils_others(attention, GPU)
