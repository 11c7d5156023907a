"""Packed rows to the slots of their tiles and back, with gradients that are gathers too.

Autograd's own gradient of a gather is a scatter that adds row after row. Here every row stands in
one slot that counts: spare slots repeat a row, and masks and :func:`slots_to_rows` see to it that
no gradient comes through them. So both directions are plain gathers; only tiles that are keys of
several others are added up, 64 rows at a time.
"""

from typing import Any

import torch
from torch import Tensor

from reward_model.packing import TILE, PackedBatch


def rows_to_slots(x_TD: Tensor, packed: PackedBatch) -> Tensor:
    """[T, D] → [S, D]. The gradient of a row is that of its slot; spare slots must have none."""
    return _RowsToSlots.apply(x_TD, packed)  # type: ignore[no-any-return, no-untyped-call]


def slots_to_rows(x_SD: Tensor, packed: PackedBatch) -> Tensor:
    """[S, D] → [T, D]. Spare slots get no gradient."""
    return _SlotsToRows.apply(x_SD, packed)  # type: ignore[no-any-return, no-untyped-call]


def chains(x_SD: Tensor, packed: PackedBatch) -> tuple[Tensor, ...]:
    """For every block the slots that are its keys, [B · K, D] each."""
    if not torch.is_grad_enabled():
        return _chains(x_SD, packed)
    return _Chains.apply(x_SD, packed)  # type: ignore[no-any-return, no-untyped-call]


def _chains(x_SD: Tensor, packed: PackedBatch) -> tuple[Tensor, ...]:
    width = x_SD.shape[1]
    tiles = x_SD.view(-1, TILE * width)
    return tuple(
        x_SD[block.start : block.stop]
        if block.chains_BA is None
        else tiles.index_select(0, block.chains_BA.view(-1)).view(-1, width)
        for block in packed.blocks
    )


class _RowsToSlots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, packed: PackedBatch) -> Tensor:
        ctx.packed = packed
        return x_TD.index_select(0, packed.slot_rows_S)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None]:
        packed: PackedBatch = ctx.packed
        grad_TD = grad_SD.index_select(0, packed.row_slots_T)
        grad_TD[packed.computed_tokens :] = 0
        return grad_TD, None


class _SlotsToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, packed: PackedBatch) -> Tensor:
        ctx.packed = packed
        return x_SD.index_select(0, packed.row_slots_T)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, None]:
        packed: PackedBatch = ctx.packed
        grad_SD = grad_TD.index_select(0, packed.slot_rows_S)
        return grad_SD.index_fill_(0, packed.spare_slots, 0), None


class _Chains(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, packed: PackedBatch) -> tuple[Tensor, ...]:
        ctx.packed = packed
        # A view of the input must not leave a custom function.
        return tuple(
            part.clone() if block.chains_BA is None else part
            for block, part in zip(packed.blocks, _chains(x_SD, packed), strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        packed: PackedBatch = ctx.packed
        width = grads[0].shape[1]
        grad_SD = grads[0].new_zeros(len(packed.slot_rows_S), width)
        tiles = grad_SD.view(-1, TILE * width)
        for block, grad in zip(packed.blocks, grads, strict=True):
            if block.chains_BA is None:
                grad_SD[block.start : block.stop] += grad
            else:
                tiles.index_add_(0, block.chains_BA.view(-1), grad.reshape(-1, TILE * width))
        return grad_SD, None
