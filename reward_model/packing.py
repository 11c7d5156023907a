"""Token sequences packed for one forward pass: no padding, common prefixes computed once.

Sequences are cut into tiles of 64 tokens. Tiles form a trie: two sequences share a tile when all
their tokens up to its end are equal. The tokens of the distinct tiles, in order of first use, are
the rows of the packed batch. Attention runs tile by tile, and the shape of a tile's attention is
set by the tile's depth alone, so neighbours cannot change a bit of any result.

Shape suffixes: N sequences, T packed rows, S slots, B runs of one block, A tiles of a chain, L
tokens of one sequence.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_model.tiles import TILE, IntArray, Segment, Tiles, build_tiles

ROW_MULTIPLE = 64
"""Packed rows are filled up to a multiple of this: matrix-product kernels change with the row count
when it is small, and element-wise kernels treat the end of a thread's share differently."""


@dataclass(frozen=True, eq=False)
class AttentionBlock:
    """Tiles, or whole sequences, of equal shape: attended to in one call.

    Its queries are ``count`` runs of ``queries`` slots from slot ``start`` on; the first query of
    each stands at position ``query_start``. Its keys are the tiles ``chains_BA`` names (the tile's
    ancestors and itself, as numbers of runs of 64 slots), or without it the same slots.
    ``lengths_B`` are the tokens up to each run's end.
    """

    start: int
    count: int
    queries: int
    query_start: int
    chains_BA: Tensor | None
    lengths_B: Tensor

    @property
    def stop(self) -> int:
        return self.start + self.count * self.queries

    @property
    def keys(self) -> int:
        return self.query_start + self.queries

    def to(self, device: torch.device | str) -> "AttentionBlock":
        chains_BA = None if self.chains_BA is None else self.chains_BA.to(device)
        return replace(self, chains_BA=chains_BA, lengths_B=self.lengths_B.to(device))


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """What one forward pass computes.

    ``token_ids_T`` and ``position_ids_T`` are the packed rows, the last ``filler`` of which belong
    to no sequence. Attention works on slots, 64 for each tile, block after block: ``slot_rows_S``
    is the row in each slot and ``row_slots_T`` the slot of each row. A tile shorter than 64 repeats
    its last row; causal masks hide those slots, other masks use ``lengths_B``.
    ``first_N`` and ``last_N`` are the rows of each sequence's first and last token.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    blocks: tuple[AttentionBlock, ...]
    slot_rows_S: Tensor
    row_slots_T: Tensor
    first_N: Tensor
    last_N: Tensor
    lengths: tuple[int, ...]
    computed_tokens: int
    causal: bool
    _tiles: Tiles
    cache: dict[Hashable, Any] = field(default_factory=dict)
    """What the first layer that needs it makes for all of them: masks, places of keys."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """The sequences' true lengths added up; ``computed_tokens`` is what sharing leaves."""
        return sum(self.lengths)

    @property
    def filler(self) -> int:
        return len(self.token_ids_T) - self.computed_tokens

    @property
    def device(self) -> torch.device:
        return self.token_ids_T.device

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All rows but the fillers, in their order."""
        return self._tiles.segments()

    def rows(self, n: int) -> Tensor:
        """Row index of every token of sequence ``n``, [L]."""
        rows = np.concatenate([self._tiles.rows(tile) for tile in self._tiles.chains[n]])
        return torch.from_numpy(rows).to(self.device)

    def to(self, device: torch.device | str) -> "PackedBatch":
        """A copy on ``device``."""
        if self.device == torch.device(device):
            return self
        return replace(
            self,
            token_ids_T=self.token_ids_T.to(device),
            position_ids_T=self.position_ids_T.to(device),
            blocks=tuple(block.to(device) for block in self.blocks),
            slot_rows_S=self.slot_rows_S.to(device),
            row_slots_T=self.row_slots_T.to(device),
            first_N=self.first_N.to(device),
            last_N=self.last_N.to(device),
            cache={},
        )


def pack(
    sequences: Sequence[Sequence[int]], *, causal: bool, share_prefix: bool = True
) -> PackedBatch:
    """Pack token-id sequences.

    Args:
        sequences: N sequences of at least one token each.
        causal: whether a token sees only what precedes it (decoders). Without it each sequence is
            attended to as a whole and only equal sequences are merged.
        share_prefix: whether equal leading tiles are computed once.

    Raises:
        ValueError: no sequence, or an empty one.
    """
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("pack needs at least one sequence, and no empty one")
    tiles = build_tiles(sequences, share="prefix" if causal else "whole", enabled=share_prefix)
    blocks, order = _causal_blocks(tiles) if causal else _whole_blocks(tiles)
    slot_rows = tiles.slots()[order].reshape(-1)
    row_slots = _slots_of_rows(tiles, order)
    computed = len(tiles.tokens)
    filler = -computed % ROW_MULTIPLE
    positions = np.concatenate(
        [
            TILE * depth + np.arange(length)
            for depth, length in zip(tiles.depths, tiles.lengths, strict=True)
        ]
    )
    first = [tiles.starts[chain[0]] for chain in tiles.chains]
    last = [tiles.starts[chain[-1]] + tiles.lengths[chain[-1]] - 1 for chain in tiles.chains]
    return PackedBatch(
        token_ids_T=torch.tensor(tiles.tokens + [tiles.tokens[0]] * filler),
        position_ids_T=torch.from_numpy(np.pad(positions.astype(np.int64), (0, filler))),
        blocks=blocks,
        slot_rows_S=torch.from_numpy(slot_rows),
        row_slots_T=torch.from_numpy(np.pad(row_slots, (0, filler))),
        first_N=torch.tensor(first),
        last_N=torch.tensor(last),
        lengths=tuple(len(sequence) for sequence in sequences),
        computed_tokens=computed,
        causal=causal,
        _tiles=tiles,
    )


def shared_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens of ``second`` that a packed causal batch takes from ``first``: whole equal tiles."""
    shared = 0
    while shared < len(second) and first[shared : shared + TILE] == second[shared : shared + TILE]:
        shared += TILE
    return min(shared, len(second))


def count_computed_tokens(sequences: Sequence[Sequence[int]], *, causal: bool) -> int:
    """The rows :func:`pack` would compute, without building the batch."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for sequence in sequences:
        tokens = tuple(sequence)
        step = TILE if causal else len(tokens)
        for end in _tile_ends(len(tokens), step):
            prefix = tokens[:end]
            if prefix not in seen:
                seen.add(prefix)
                total += end - (end - 1) // step * step
    return total


def _tile_ends(length: int, step: int) -> list[int]:
    return [min(start + step, length) for start in range(0, length, step)]


def _causal_blocks(tiles: Tiles) -> tuple[tuple[AttentionBlock, ...], IntArray]:
    """One block per depth: a tile's 64 queries against all keys up to its end."""
    depths = np.asarray(tiles.depths)
    parents = np.asarray(tiles.parents, dtype=np.int64)
    order = np.argsort(depths, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    blocks: list[AttentionBlock] = []
    start = 0
    for depth in range(int(depths.max()) + 1):
        members = order[depths[order] == depth]
        chain = [members]
        for _ in range(depth):
            chain.append(parents[chain[-1]])
        chains = place[np.stack(chain[::-1], axis=1)]
        blocks.append(
            AttentionBlock(
                start=start,
                count=len(members),
                queries=TILE,
                query_start=depth * TILE,
                chains_BA=torch.from_numpy(chains) if depth else None,
                lengths_B=tiles.ends(members),
            )
        )
        start = blocks[-1].stop
    return tuple(blocks), order


def _whole_blocks(tiles: Tiles) -> tuple[tuple[AttentionBlock, ...], IntArray]:
    """One block per number of tiles: whole sequences, queries and keys alike."""
    by_size: dict[int, list[tuple[int, ...]]] = {}
    for chain in dict.fromkeys(tiles.chains):
        by_size.setdefault(len(chain), []).append(chain)
    blocks: list[AttentionBlock] = []
    order: list[IntArray] = []
    start = 0
    for size in sorted(by_size):
        members = np.asarray(by_size[size], dtype=np.int64)
        blocks.append(
            AttentionBlock(
                start=start,
                count=len(members),
                queries=size * TILE,
                query_start=0,
                chains_BA=None,
                lengths_B=tiles.ends(members[:, -1]),
            )
        )
        order.append(members.reshape(-1))
        start = blocks[-1].stop
    return tuple(blocks), np.concatenate(order)


def _slots_of_rows(tiles: Tiles, order: IntArray) -> IntArray:
    """The slot of every row, for tiles in ``order``."""
    row_slots = np.empty(len(tiles.tokens), dtype=np.int64)
    for place, tile in enumerate(order):
        start, length = tiles.starts[tile], tiles.lengths[tile]
        row_slots[start : start + length] = place * TILE + np.arange(length)
    return row_slots
