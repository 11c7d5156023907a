"""Attention of a few packed rows, each over the rows of its own sequence.

Every row is computed by itself, so it does not depend on the others.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model.attend import attend
from reward_model.kernels.attention import attention as kernel_attention
from reward_model.kernels.attention import attention_suits
from reward_model.packing import ROW_MULTIPLE, PackedBatch
from reward_model.product_attention import attend_with_gradient
from reward_model.tiles import TILE

LEAST_QUERIES = 8
"""PyTorch gives products in half precision to oneDNN from 4,096 multiplications on, all matrices of
a call together; with fewer queries it would go by how many rows are wanted."""


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    rows_N: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of ``rows_N``.

    Args:
        query: [1, heads, R, D]: of ``rows_N``, and of further rows up to a multiple of 64.
        key, value: [1, key heads, T, D], of all packed rows.
        window: a query sees keys less than this far away.
        softcap: logits become softcap · tanh(logits / softcap).

    Returns:
        [1, R, heads, D]; what the further rows are is not said.
    """
    # Under autocast rotated queries and keys come in float32, values in what is asked for.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if attention_suits(query, key, value):
        return kernel_attention(
            query, key, value, packed, rows_N, scale=scale, window=window, softcap=softcap
        )
    heads, dim, key_heads = query.shape[1], query.shape[3], key.shape[1]
    # Query heads that share a key head are one matrix of queries: [N, key heads, group, D].
    query_N = query[0, :, : len(rows_N)].transpose(0, 1).view(len(rows_N), key_heads, -1, dim)
    if torch.is_grad_enabled():
        rows = _by_segments(query_N, key, value, packed, rows_N, scale, window, softcap)
    else:
        rows = _by_tiles(query_N, key, value, packed, rows_N, scale, window, softcap)
    output_N = rows.reshape(1, len(rows_N), heads, dim)
    filler = output_N[:, -1:].expand(-1, -len(rows_N) % ROW_MULTIPLE, -1, -1)
    return torch.cat([output_N, filler], dim=1)


def _by_tiles(
    query_N: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, rows_N: Tensor,
    scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """Over the tiles of each row's sequence: their number, and so the kernels, are its own."""
    key_TD, value_TD = (x[0].transpose(0, 1) for x in (key, value))
    output_N = torch.empty_like(query_N, memory_format=torch.contiguous_format)
    with torch.autocast(query_N.device.type, enabled=False):
        for members, rows_BK, mask in _seen(packed, rows_N, window, value.dtype):
            own = _at_least(LEAST_QUERIES, query_N[members].flatten(0, 1)).contiguous()
            seen_key, seen_value = (
                x_TD[rows_BK].transpose(1, 2).flatten(0, 1).contiguous()
                for x_TD in (key_TD, value_TD)
            )
            some = attend(own, seen_key, seen_value, mask, scale=scale, softcap=softcap)
            output_N[members] = some[:, : query_N.shape[2]].view(len(members), *query_N.shape[1:])
    return output_N


def _at_least(count: int, query: Tensor) -> Tensor:
    """[N, M, D], in half precision with M filled up to ``count``."""
    missing = 0 if query.dtype == torch.float32 else max(count - query.shape[1], 0)
    return F.pad(query, (0, 0, 0, missing)) if missing else query


def _seen(
    packed: PackedBatch, rows_N: Tensor, window: int | None, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Wanted rows with equally many tiles: which [B], the rows there [B, K], a mask [B, 1, K]."""
    slots_N = packed.row_slots_T[rows_N]
    for block in packed.blocks:
        members = torch.nonzero((slots_N >= block.start) & (slots_N < block.stop))[:, 0]
        if not len(members):
            continue
        run = torch.div(slots_N[members] - block.start, block.queries, rounding_mode="floor")
        place = block.query_start + (slots_N[members] - block.start) % block.queries
        if block.chains_BA is None:
            own = torch.arange(block.queries // TILE, device=run.device)
            chains_BA = block.start // TILE + run[:, None] * len(own) + own
        else:
            chains_BA = block.chains_BA[run]
        rows_BK = packed.slot_rows_S.view(-1, TILE)[chains_BA].flatten(1)
        key = torch.arange(block.keys, device=run.device)[None]
        stop = place + 1 if packed.causal else block.lengths_B[run]
        visible = key < stop[:, None]
        if window is not None:
            visible &= (key - place[:, None]).abs() < window
        mask = torch.zeros(visible.shape, dtype=dtype, device=run.device)
        yield members, rows_BK, mask.masked_fill_(~visible, float("-inf"))[:, None]


def _by_segments(
    query_N: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, rows_N: Tensor,
    scale: float, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """The same with gradients, at each row's exact length (see :mod:`reward_model.segments`)."""
    segments = packed.segments
    sizes = [segment.length for segment in segments] + [packed.filler]
    keys, values = torch.split(key, sizes, dim=2), torch.split(value, sizes, dim=2)
    ends = torch.tensor(sizes).cumsum(0)
    outputs: list[Tensor] = []
    for own, row in zip(query_N, rows_N.tolist(), strict=True):
        index = int(torch.searchsorted(ends, row, right=True))
        segment = segments[index]
        chain = (*segment.ancestors, index)
        length = segment.start + segment.length
        place = length - (int(ends[index]) - row)
        first = 0 if window is None else max(place - window + 1, 0)
        stop = place + 1
        if not packed.causal:
            stop = length if window is None else min(place + window, length)
        seen_key, seen_value = (
            torch.cat([x[i] for i in chain], dim=2)[:, :, first:stop] for x in (keys, values)
        )
        if softcap is None:
            output = attend_with_gradient(own[None], seen_key, seen_value, None, scale=scale)
        else:
            logits = softcap * torch.tanh(own[None] @ seen_key.transpose(2, 3) * scale / softcap)
            output = torch.softmax(logits.float(), dim=-1).to(value.dtype) @ seen_value
        outputs.append(output)
    return torch.cat(outputs)
