"""The trie of tiles that packed sequences make: every distinct tile of 64 tokens once.

Two sequences share a tile when all their tokens up to its end are equal.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TILE = 64

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A run of packed rows that no sequence leaves or enters in between.

    Its first row stands at position ``start``, after the rows of ``ancestors``: numbers of
    segments, whose lengths add up to ``start``.
    """

    length: int
    start: int
    ancestors: tuple[int, ...]


class Tiles:
    """The trie under construction: one entry per distinct tile."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.tokens: list[int] = []
        self.chains: list[tuple[int, ...]] = []

    def add(self, tokens: Sequence[int], parent: int, depth: int) -> int:
        self.starts.append(len(self.tokens))
        self.lengths.append(len(tokens))
        self.depths.append(depth)
        self.parents.append(parent)
        self.tokens.extend(tokens)
        return len(self.starts) - 1

    def rows(self, tile: int) -> IntArray:
        start = self.starts[tile]
        return np.arange(start, start + self.lengths[tile], dtype=np.int64)

    def segments(self) -> tuple[Segment, ...]:
        """Runs of tiles that follow one another, cut where another tile goes on from one."""
        starts = {
            tile for tile, parent in enumerate(self.parents) if parent != tile - 1 or not tile
        }
        starts |= {self.parents[tile] + 1 for tile in starts if self.parents[tile] >= 0}
        segments: list[Segment] = []
        last: dict[int, int] = {}  # last tile of a segment → the segment
        bounds = [*sorted(starts - {len(self.parents)}), len(self.parents)]
        for first, stop in itertools.pairwise(bounds):
            before: tuple[int, ...] = ()
            if (parent := self.parents[first]) >= 0:
                index = last[parent]
                before = (*segments[index].ancestors, index)
            last[stop - 1] = len(segments)
            length = sum(self.lengths[first:stop])
            segments.append(Segment(length, TILE * self.depths[first], before))
        return tuple(segments)

    def ends(self, members: IntArray) -> Tensor:
        """Tokens of a sequence up to the end of each tile."""
        return torch.tensor([TILE * self.depths[tile] + self.lengths[tile] for tile in members])

    def slots(self) -> IntArray:
        """Rows of every tile's 64 slots; slots past its end repeat its last row. [tiles, 64]"""
        starts = np.asarray(self.starts, dtype=np.int64)[:, None]
        lengths = np.asarray(self.lengths, dtype=np.int64)[:, None]
        return starts + np.minimum(np.arange(TILE, dtype=np.int64)[None, :], lengths - 1)


def build_tiles(sequences: Sequence[Sequence[int]], *, share: str, enabled: bool) -> Tiles:
    tiles = Tiles()
    children: dict[tuple[int, tuple[int, ...]], int] = {}
    whole: dict[tuple[int, ...], tuple[int, ...]] = {}
    for sequence in sequences:
        tokens = tuple(sequence)
        if enabled and share == "whole" and tokens in whole:
            tiles.chains.append(whole[tokens])
            continue
        parent, chain = -1, []
        for depth, start in enumerate(range(0, len(tokens), TILE)):
            piece = tokens[start : start + TILE]
            key = (parent, piece)
            tile = children.get(key) if enabled and share == "prefix" else None
            if tile is None:
                tile = children[key] = tiles.add(piece, parent, depth)
            chain.append(tile)
            parent = tile
        whole[tokens] = tuple(chain)
        tiles.chains.append(tuple(chain))
    return tiles
