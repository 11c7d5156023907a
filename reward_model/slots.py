"""Packed rows to the slots of their tiles and back; tiles to the keys that they see.

Only scoring works on slots, so none of this has a gradient to think of.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from reward_model.packing import PackedBatch
from reward_model.tiles import TILE


def rows_to_slots(x_TD: Tensor, packed: PackedBatch) -> Tensor:
    """[T, D] → [S, D]. Spare slots repeat the last row of their tile."""
    return x_TD.index_select(0, packed.slot_rows_S)


def slots_to_rows(x_SD: Tensor, packed: PackedBatch) -> Tensor:
    """[S, D] → [T, D]."""
    return x_SD.index_select(0, packed.row_slots_T)


def keys(x_SD: Tensor, packed: PackedBatch, heads: int) -> Iterator[Tensor]:
    """For every block the slots that its queries may see, head by head: [B · heads, K, D] each."""
    dim = x_SD.shape[1] // heads
    if len(packed.blocks) > 1 and packed.causal:
        tiles = x_SD.view(-1, TILE, heads, dim).transpose(1, 2).reshape(-1, TILE * dim)
    else:
        tiles = x_SD
    for index, block in enumerate(packed.blocks):
        if block.chains_BA is None:
            own = x_SD[block.start : block.stop].view(block.count, -1, heads, dim)
            yield own.transpose(1, 2).contiguous().view(-1, block.keys, dim)
        else:
            runs = _runs(packed, index, block.chains_BA, heads)
            yield tiles.index_select(0, runs).view(-1, block.keys, dim)


def _runs(packed: PackedBatch, index: int, chains_BA: Tensor, heads: int) -> Tensor:
    """Where the tiles of a block's chains are when every head has a run of its own."""
    name = ("runs", index, heads)
    if name not in packed.cache:
        head = torch.arange(heads, device=chains_BA.device)[None, :, None]
        packed.cache[name] = (chains_BA[:, None, :] * heads + head).view(-1)
    runs: Tensor = packed.cache[name]
    return runs
