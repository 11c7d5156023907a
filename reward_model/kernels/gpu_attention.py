"""Attention over a packed batch on a GPU, every tile read where its rows stand.

A program takes the queries of one run (see :class:`reward_model.kernels.attention.Queries`) for one
or a few heads that share a key head, and walks the run's chain of tiles in order, a fixed number of
keys at a time. Which keys it visits follows from the run's own positions, so neighbours cannot
change a bit, and a tile gives the same whether it is shared or not.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reward_model.kernels.attention import Queries
from reward_model.packing import PackedBatch
from reward_model.tiles import TILE

_FIRST_ROWS = "first rows of the tiles of chains"
_FEW = 16
"""Queries of a program that has one row to compute: the least that a matrix product takes."""
_MANY_ROWS = 128
"""Rows of a program's product, where there are heads enough to stack."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    rows_N: Tensor | None = None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """As :func:`reward_model.kernels.attention.attention`."""
    (_, heads, rows, dim), key_heads = query.shape, key.shape[1]
    tiles = Queries.of_tiles(packed)
    runs = tiles if rows_N is None else tiles.of_rows(rows_N)
    asked = packed.computed_tokens if rows_N is None else len(rows_N)
    output = query.new_empty(1, rows, heads, dim)
    output[0, asked:] = 0
    queries = TILE if rows_N is None else _FEW
    together = _together(heads // key_heads, queries)
    # Twice the bytes, or twice the head: half the keys at once, and none fetched ahead.
    wide = query.dtype == torch.float32 or dim > 128
    _attention[(heads // together, len(runs.rows))](
        query, key, value, output,
        query.stride(2), query.stride(1), key.stride(2), key.stride(1),
        value.stride(2), value.stride(1), output.stride(1), output.stride(2),
        runs.rows, runs.counts, runs.positions, runs.starts, runs.keys, _first_rows(packed, tiles),
        scale, softcap or 1.0,
        CAUSAL=packed.causal, WINDOW=window or 0, CAPPED=softcap is not None,
        GROUP=heads // key_heads, TOGETHER=together, QUERIES=queries,
        DIM=dim, BLOCK_DIM=max(triton.next_power_of_2(dim), 16),
        KEYS=TILE // 2 if wide else TILE, TILE=TILE,
        num_warps=8 if together * queries >= _MANY_ROWS else 4,
        num_stages=1 if wide else _stages(query.device),
    )  # fmt: skip
    return output


@cache
def _stages(device: torch.device) -> int:
    """Keys and values of as many steps at once are in shared memory: 32 KiB each, at most."""
    if device.type != "cuda":
        return 1
    properties: Any = torch.cuda.get_device_properties(device)
    there = properties.shared_memory_per_block_optin
    return 3 if there >= 160 << 10 else 2


def _first_rows(packed: PackedBatch, tiles: Queries) -> Tensor:
    """Of every tile of the chains; made once for all layers."""
    if _FIRST_ROWS not in packed.cache:
        packed.cache[_FIRST_ROWS] = tiles.rows[tiles.chains]
    first_rows: Tensor = packed.cache[_FIRST_ROWS]
    return first_rows


def _together(group: int, queries: int) -> int:
    """Heads of one program: a power of two that divides the group."""
    together = 1
    while group % (2 * together) == 0 and 2 * together * queries <= _MANY_ROWS:
        together *= 2
    return together


@triton.jit
def _walk(
    accumulated, largest, total, query, key, value, key_row, value_row, chain, first, stop,
    query_at, last, scale, softcap,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Over blocks ``first`` to ``stop`` of keys; those from ``last`` on are not the run's."""
    inside = tl.arange(0, KEYS)
    at_dim = tl.arange(0, BLOCK_DIM)
    for block in range(first, stop):
        start = block * KEYS
        rows = (tl.load(chain + start // TILE) + start % TILE + inside).to(tl.int64)
        key_at = start + inside
        keys = key + rows[:, None] * key_row + at_dim[None, :]
        values = value + rows[:, None] * value_row + at_dim[None, :]
        if MASKED:
            there = (key_at < last)[:, None] & (at_dim < DIM)[None, :]
            k = tl.load(keys, mask=there, other=0)
            v = tl.load(values, mask=there, other=0)
        elif DIM < BLOCK_DIM:
            k = tl.load(keys, mask=(at_dim < DIM)[None, :], other=0)
            v = tl.load(values, mask=(at_dim < DIM)[None, :], other=0)
        else:
            k = tl.load(keys)
            v = tl.load(values)
        logits = tl.dot(query, tl.trans(k), input_precision="ieee")
        if CAPPED:
            logits = 1 - 2 / (tl.exp(2 * logits * (scale / softcap)) + 1)
            logits = logits * (softcap * 1.4426950408889634)
        else:
            logits = logits * (scale * 1.4426950408889634)
        if MASKED:
            seen = (key_at < last)[None, :]
            distance = query_at[:, None] - key_at[None, :]
            if CAUSAL:
                seen = seen & (distance >= 0)
            if WINDOW > 0:
                seen = seen & (distance < WINDOW) & (distance > -WINDOW)
            logits = tl.where(seen, logits, float("-inf"))
        top = tl.maximum(largest, tl.max(logits, axis=1))
        # A row that has seen no key yet.
        base = tl.where(top == float("-inf"), 0.0, top)
        weights = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(weights, axis=1)
        accumulated = accumulated * shrink[:, None]
        accumulated = tl.dot(weights.to(v.dtype), v, accumulated, input_precision="ieee")
        largest = top
    return accumulated, largest, total


@triton.jit
def _attention(
    query, key, value, output,
    query_row, query_head, key_row, key_head, value_row, value_head, output_row, output_head,
    run_rows, run_counts, run_positions, run_starts, run_keys, tiles, scale, softcap,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
    GROUP: tl.constexpr, TOGETHER: tl.constexpr, QUERIES: tl.constexpr,
    DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(1)
    first_head = tl.program_id(0) * TOGETHER
    row = tl.load(run_rows + run).to(tl.int64)
    count = tl.load(run_counts + run)
    position = tl.load(run_positions + run)
    last = tl.load(run_keys + run)
    chain = tiles + tl.load(run_starts + run)

    slot = tl.arange(0, QUERIES * TOGETHER)
    place = slot % QUERIES
    head = (first_head + slot // QUERIES).to(tl.int64)
    at_dim = tl.arange(0, BLOCK_DIM)
    query_at = position + place
    wanted = (place < count)[:, None] & (at_dim < DIM)[None, :]
    own = head[:, None] * query_head + (row + place)[:, None] * query_row + at_dim[None, :]
    q = tl.load(query + own, mask=wanted, other=0)
    key += (first_head // GROUP).to(tl.int64) * key_head
    value += (first_head // GROUP).to(tl.int64) * value_head

    if CAUSAL:
        last = tl.minimum(last, position + count)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0) // KEYS
        if not CAUSAL:
            last = tl.minimum(last, position + count - 1 + WINDOW)
        whole = first
    elif CAUSAL:
        whole = position // KEYS
    else:
        whole = last // KEYS

    accumulated = tl.zeros([QUERIES * TOGETHER, BLOCK_DIM], tl.float32)
    largest = tl.full([QUERIES * TOGETHER], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES * TOGETHER], tl.float32)
    if WINDOW == 0:
        accumulated, largest, total = _walk(
            accumulated, largest, total, q, key, value, key_row, value_row, chain, 0, whole,
            query_at, last, scale, softcap,
            False, CAUSAL, WINDOW, CAPPED, DIM, BLOCK_DIM, KEYS, TILE,
        )  # fmt: skip
    accumulated, largest, total = _walk(
        accumulated, largest, total, q, key, value, key_row, value_row, chain, whole,
        tl.cdiv(last, KEYS), query_at, last, scale, softcap,
        True, CAUSAL, WINDOW, CAPPED, DIM, BLOCK_DIM, KEYS, TILE,
    )  # fmt: skip

    place_out = head[:, None] * output_head + (row + place)[:, None] * output_row + at_dim[None, :]
    result = accumulated / total[:, None]
    tl.store(output + place_out, result.to(output.dtype.element_ty), mask=wanted)
