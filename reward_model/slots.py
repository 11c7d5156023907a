"""Packed rows to the slots of their tiles and back; tiles to the chains of keys that they end.

Only scoring works on slots, so none of this has a gradient to think of.
"""

from torch import Tensor

from reward_model.packing import PackedBatch
from reward_model.tiles import TILE


def rows_to_slots(x_TD: Tensor, packed: PackedBatch) -> Tensor:
    """[T, D] → [S, D]. Spare slots repeat the last row of their tile."""
    return x_TD.index_select(0, packed.slot_rows_S)


def slots_to_rows(x_SD: Tensor, packed: PackedBatch) -> Tensor:
    """[S, D] → [T, D]."""
    return x_SD.index_select(0, packed.row_slots_T)


def chains(x_SD: Tensor, packed: PackedBatch) -> tuple[Tensor, ...]:
    """For every block the slots that are its keys, [B · K, D] each."""
    width = x_SD.shape[1]
    tiles = x_SD.view(-1, TILE * width)
    return tuple(
        x_SD[block.start : block.stop]
        if block.chains_BA is None
        else tiles.index_select(0, block.chains_BA.view(-1)).view(-1, width)
        for block in packed.blocks
    )
