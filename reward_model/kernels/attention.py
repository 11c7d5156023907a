"""Attention over a packed batch, every tile read where its rows stand."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_model.kernels import gpu
from reward_model.kernels.library import isa, kernel, suits
from reward_model.kernels.room import empty
from reward_model.packing import PackedBatch
from reward_model.tiles import TILE

LARGEST_HEAD = 256
"""Elements of a head."""
MULTIPLE = 32
"""The kernels fill heads up to a multiple of this."""
_TILES = "queries of tiles"


@dataclass(frozen=True, eq=False)
class Queries:
    """Query rows that see the same keys, run by run; int32, [runs] but ``chains``, on the batch's
    device.

    Run r has ``counts[r]`` rows from row ``rows[r]`` on; the first stands at position
    ``positions[r]`` of its sequence. It sees the first ``keys[r]`` rows of the tiles that stand in
    ``chains`` from ``starts[r]`` on.
    """

    rows: Tensor
    counts: Tensor
    positions: Tensor
    starts: Tensor
    keys: Tensor
    chains: Tensor

    @classmethod
    def of_tiles(cls, packed: PackedBatch) -> "Queries":
        """One run for every tile of a batch; made once for all layers."""
        if _TILES not in packed.cache:
            packed.cache[_TILES] = cls._of_tiles(packed)
        queries: Queries = packed.cache[_TILES]
        return queries

    @classmethod
    def _of_tiles(cls, packed: PackedBatch) -> "Queries":
        tiles = packed._tiles
        chains: list[tuple[int, ...]] = [()] * len(tiles.starts)
        for chain in tiles.chains:
            for place, tile in enumerate(chain):
                chains[tile] = chain[: place + 1] if packed.causal else chain
        positions = [TILE * depth for depth in tiles.depths]
        ends = [start + count for start, count in zip(positions, tiles.lengths, strict=True)]
        stops = torch.tensor([len(chain) for chain in chains]).cumsum(0)
        device = packed.device
        return cls(
            rows=_int32(tiles.starts, device),
            counts=_int32(tiles.lengths, device),
            positions=_int32(positions, device),
            starts=_int32([0, *stops[:-1].tolist()], device),
            keys=_int32([ends[chain[-1]] for chain in chains], device),
            chains=_int32([tile for chain in chains for tile in chain], device),
        )

    def of_rows(self, rows_N: Tensor) -> "Queries":
        """One run for each of some rows of the batch; row n of the queries is ``rows_N[n]``."""
        tiles_N = torch.searchsorted(self.rows, rows_N.int(), right=True) - 1
        return Queries(
            rows=torch.arange(len(rows_N), dtype=torch.int32, device=rows_N.device),
            counts=torch.ones(len(rows_N), dtype=torch.int32, device=rows_N.device),
            positions=self.positions[tiles_N] + rows_N.int() - self.rows[tiles_N],
            starts=self.starts[tiles_N],
            keys=self.keys[tiles_N],
            chains=self.chains,
        )


def attention_suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether attention is computed here."""
    known = suits(query, key, value)
    if query.is_cuda:  # autocast has done its part before
        known = gpu.on_gpu(query, key, value) and not torch.is_grad_enabled()
    return (
        known
        and all(x.stride(-1) == 1 for x in (query, key, value))
        and query.shape[3] <= LARGEST_HEAD
        and query.shape[1] // key.shape[1] <= TILE
    )


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
    """Attention of packed rows, each over the rows of its own sequence.

    Args:
        query: [1, heads, T, D]. key, value: [1, key heads, T, D]. Any strides but the last.
        rows_N: which rows ``query`` starts with, [1, heads, R >= N, D]; by default all.

    Returns:
        [1, T or R, heads, D]; 0 in rows that belong to no sequence, and after the first N.
    """
    if query.is_cuda:
        from reward_model.kernels import gpu_attention  # needs Triton

        return gpu_attention.attention(
            query, key, value, packed, rows_N, scale=scale, window=window, softcap=softcap
        )
    heads, rows, dim = query.shape[1:]
    queries = tiles = Queries.of_tiles(packed)
    asked = packed.computed_tokens
    if rows_N is not None:
        queries, asked = tiles.of_rows(rows_N), len(rows_N)
    output = empty(query, 1, rows, heads, dim)
    output[0, asked:] = 0
    scratch = empty(query, scratch_elements(packed, key.shape[1], dim))
    arguments = Arguments.of(
        packed, queries, heads, key.shape[1], dim,
        scale=scale, window=window, softcap=softcap, stacked=rows_N is not None,
    )  # fmt: skip
    arguments.packed = scratch.data_ptr()
    for side, tensor in (("query", query), ("key", key), ("value", value)):
        setattr(arguments, side, tensor.data_ptr())
        setattr(arguments, f"{side}_row", tensor.stride(2))
        setattr(arguments, f"{side}_head", tensor.stride(1))
    arguments.out = output.data_ptr()
    arguments.out_row, arguments.out_head = output.stride(1), output.stride(2)
    kernel("attention", query.dtype)(ctypes.byref(arguments))
    return output


def scratch_elements(packed: PackedBatch, key_heads: int, dim: int) -> int:
    """What attention over a batch needs room for, in elements."""
    filled = -(-dim // MULTIPLE) * MULTIPLE
    return key_heads * len(Queries.of_tiles(packed).rows) * 2 * TILE * filled


class Arguments(ctypes.Structure):
    """``Attention`` in ``kernels.h``."""

    @classmethod
    def of(
        cls,
        packed: PackedBatch,
        queries: Queries,
        heads: int,
        key_heads: int,
        dim: int,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        stacked: bool = False,
    ) -> "Arguments":
        """All but what is read and written. ``packed`` and ``queries`` have to outlive it."""
        tiles = Queries.of_tiles(packed)
        return cls(
            heads=heads, key_heads=key_heads, dim=dim,
            tile_rows=tiles.rows.data_ptr(), tile_lengths=tiles.counts.data_ptr(),
            tiles=len(tiles.rows),
            task_rows=queries.rows.data_ptr(), task_counts=queries.counts.data_ptr(),
            task_positions=queries.positions.data_ptr(), chain_starts=queries.starts.data_ptr(),
            chain_keys=queries.keys.data_ptr(), chains=queries.chains.data_ptr(),
            tasks=len(queries.rows), causal=packed.causal, window=window or 0, stacked=stacked,
            scale=scale, softcap=softcap or 0.0, threads=torch.get_num_threads(), isa=isa(),
        )  # fmt: skip

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out")),
        *((f"{side}_{step}", ctypes.c_long)
          for side in ("query", "key", "value", "out") for step in ("row", "head")),
        *((name, ctypes.c_long) for name in ("heads", "key_heads", "dim")),
        *((name, ctypes.c_void_p) for name in ("tile_rows", "tile_lengths")),
        ("tiles", ctypes.c_long),
        *((f"task_{name}", ctypes.c_void_p) for name in ("rows", "counts", "positions")),
        *((name, ctypes.c_void_p) for name in ("chain_starts", "chain_keys", "chains")),
        *((name, ctypes.c_long) for name in ("tasks", "causal", "window", "stacked")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        ("packed", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("threads", "isa")),
    ]  # fmt: skip


def _int32(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device)
