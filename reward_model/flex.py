"""Attention over a packed batch as one FlexAttention call: the way on CUDA.

Slots are laid out in tiles of 64 (see :mod:`reward_model.packing`), so the trie is a block mask: a
tile of queries sees the tiles of its chain. Those before its own are seen whole, its own up to each
query. A kernel walks the chain in order of depth with one fixed tile shape, whoever else is in the
batch and whether a tile is shared or not.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from reward_model.packing import AttentionBlock, PackedBatch
from reward_model.tiles import TILE

KERNEL: dict[str, Any] = {"BLOCK_M": TILE, "BLOCK_N": TILE}
"""One tile shape for every call: left to itself the kernel chooses by the shapes it sees."""


def flex_packed_attention(
    query_SD: Tensor,
    key_SD: Tensor,
    value_SD: Tensor,
    packed: PackedBatch,
    *,
    dim: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of all slots, [S, heads · dim].

    Args:
        query_SD: [S, heads · dim]. key_SD, value_SD: [S, key heads · dim].
        window: a query sees keys less than this far away.
        softcap: logits become softcap · tanh(logits / softcap) before the mask.
    """
    query, key, value = (
        x.view(1, len(x), -1, dim).transpose(1, 2) for x in (query_SD, key_SD, value_SD)
    )
    output = _compiled()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcap(softcap, query.device),
        block_mask=block_mask(packed, window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=KERNEL,
    )
    joined: Tensor = output[0].transpose(0, 1).reshape(len(query_SD), -1)
    return joined


def block_mask(packed: PackedBatch, window: int | None) -> BlockMask:
    """Who sees whom, 64 × 64 slots at a time; made once per batch and window."""
    name = ("flex", window)
    if name not in packed.cache:
        packed.cache[name] = _block_mask(packed, window)
    mask: BlockMask = packed.cache[name]
    return mask


def _block_mask(packed: PackedBatch, window: int | None) -> BlockMask:
    device = packed.device
    chains = [chain for block in packed.blocks for chain in tile_chains(block, packed.causal)]
    # A narrow window hides parts of earlier tiles too, so then every tile is masked by element.
    whole = packed.causal and window is None
    partial = [chain[-1:] if whole else chain for chain in chains]
    full = [chain[:-1] if whole else [] for chain in chains]
    position_S, valid_S = _positions(packed)
    # Tensors, because torch.compile would make a symbol of a plain number.
    width = torch.tensor(0 if window is None else window, device=device)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = position_S[query] - position_S[key]
        seen = distance >= 0 if packed.causal else valid_S[key]
        if window is None:
            return seen
        return seen & (distance.abs() < width)

    return BlockMask.from_kv_blocks(
        *_table(partial, device),
        *_table(full, device),
        BLOCK_SIZE=TILE,
        mask_mod=visible,
        seq_lengths=(len(packed.slot_rows_S), len(packed.slot_rows_S)),
        compute_q_blocks=torch.is_grad_enabled(),
    )


def tile_chains(block: AttentionBlock, causal: bool) -> list[list[int]]:
    """For every tile of queries of a block, in order, the tiles of keys: runs of 64 slots."""
    first = block.start // TILE
    if causal:
        if block.chains_BA is None:
            return [[first + run] for run in range(block.count)]
        chains: list[list[int]] = block.chains_BA.tolist()
        return chains
    size = block.queries // TILE
    return [
        list(range(first + run * size, first + (run + 1) * size))
        for run in range(block.count)
        for _ in range(size)
    ]


def _positions(packed: PackedBatch) -> tuple[Tensor, Tensor]:
    """Position in its sequence of every slot, and whether it holds a token of its own, [S]."""
    runs, valid = [], []
    for block in packed.blocks:
        inside_Q = torch.arange(block.queries, device=packed.device)
        position_BQ = (block.query_start + inside_Q).expand(block.count, -1)
        runs.append(position_BQ.reshape(-1))
        valid.append((position_BQ < block.lengths_B[:, None]).reshape(-1))
    return torch.cat(runs), torch.cat(valid)


def _table(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Counts [1, 1, tiles] and indices [1, 1, tiles, tiles], as :class:`BlockMask` wants them."""
    indices = torch.zeros(len(rows), len(rows), dtype=torch.int32)
    for place, row in enumerate(rows):
        indices[place, : len(row)] = torch.tensor(row, dtype=torch.int32)
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return counts.to(device)[None, None], indices.to(device)[None, None]


@cache
def _softcap(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    cap = torch.tensor(softcap, device=device)

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@cache
def _compiled() -> Callable[..., Tensor]:
    # Sizes are symbols: no kernel is made for one number of slots.
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled
