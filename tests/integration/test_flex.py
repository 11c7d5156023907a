"""The CUDA form of packed attention, compiled for the CPU: same results, same bits alone."""

import random
import shutil

import pytest
import torch
from torch import Tensor

from reward_model.attention import packed_attention
from reward_model.flex import flex_packed_attention
from reward_model.packing import PackedBatch, pack
from reward_model.slots import rows_to_slots, slots_to_rows

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU"),
]

HEADS, KEY_HEADS, DIM = 4, 2, 32


def sequences() -> list[list[int]]:
    rng = random.Random(0)
    prompt = [rng.randrange(1000) for _ in range(150)]
    own = [[rng.randrange(1000) for _ in range(length)] for length in (1, 63, 64, 65, 300)]
    return [*own, *([*prompt, *one] for one in own)]


def inputs(packed: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that depend on token and position alone, as in a first layer: [T, heads · D]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1000, HEADS * DIM, generator=generator)
    positions = torch.randn(600, HEADS * DIM, generator=generator)
    x_TD = tokens[packed.token_ids_T] + positions[packed.position_ids_T]
    return x_TD, x_TD[:, : KEY_HEADS * DIM] * 0.7, x_TD[:, -KEY_HEADS * DIM :] * 1.1


def by_blocks(packed: PackedBatch, window: int | None, softcap: float | None) -> Tensor:
    query, key, value = (x.view(1, len(x), -1, DIM).transpose(1, 2) for x in inputs(packed))
    with torch.no_grad():
        output, _ = packed_attention(
            torch.nn.Identity(), query, key, value, None,
            packed=packed, sliding_window=window, softcap=softcap,
        )  # fmt: skip
    return output.view(-1, HEADS * DIM)


def by_flex(packed: PackedBatch, window: int | None, softcap: float | None) -> Tensor:
    slots = (rows_to_slots(x, packed) for x in inputs(packed))
    output_SD = flex_packed_attention(
        *slots, packed, dim=DIM, scale=DIM**-0.5, window=window, softcap=softcap
    )
    return slots_to_rows(output_SD, packed)


@pytest.mark.parametrize(
    ("causal", "window", "softcap"), [(True, None, None), (True, 70, 5.0), (False, 33, None)]
)
def test_flex_attention_is_block_attention(
    causal: bool, window: int | None, softcap: float | None
) -> None:
    with torch.inference_mode():
        packed = pack(sequences(), causal=causal)
        together = by_flex(packed, window, softcap)
        wanted = by_blocks(packed, window, softcap)
        rows = packed.computed_tokens
        assert torch.allclose(together[:rows], wanted[:rows], atol=2e-5)
        for n in (3, 9):
            alone = pack([sequences()[n]], causal=causal, share_prefix=False)
            output = by_flex(alone, window, softcap)[: alone.computed_tokens]
            assert torch.equal(output, together[packed.rows(n)])
