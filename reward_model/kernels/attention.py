"""Attention over a packed batch, every tile read where its rows stand."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_model.kernels import gpu
from reward_model.kernels.library import isa, kernel, suits
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
    output = query.new_empty(1, rows, heads, dim)
    output[0, asked:] = 0
    filled = -(-dim // MULTIPLE) * MULTIPLE
    scratch = query.new_empty(key.shape[1] * len(tiles.rows) * 2 * TILE * filled)
    kernel("attention", query.dtype)(ctypes.byref(_Arguments(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr(),
        query.stride(2), query.stride(1), key.stride(2), key.stride(1),
        value.stride(2), value.stride(1), output.stride(1), output.stride(2),
        heads, key.shape[1], dim,
        tiles.rows.data_ptr(), tiles.counts.data_ptr(), len(tiles.rows),
        queries.rows.data_ptr(), queries.counts.data_ptr(), queries.positions.data_ptr(),
        queries.starts.data_ptr(), queries.keys.data_ptr(), queries.chains.data_ptr(),
        len(queries.rows), packed.causal, window or 0, rows_N is not None,
        scale, softcap or 0.0, scratch.data_ptr(), torch.get_num_threads(), isa(),
    )))  # fmt: skip
    return output


class _Arguments(ctypes.Structure):
    """``Attention`` in ``attention.c``."""

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
