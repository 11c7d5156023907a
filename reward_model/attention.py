"""Attention over a packed batch, registered with transformers as ``sumzero_packed``.

Every block of the batch (see :mod:`reward_model.packing`) is one call on tiles of one fixed shape.
Kernels compute the tiles of a call independently, so a tile's result depends on its own rows only.
Query heads that share a key head are stacked along the query axis: no key is copied per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from reward_model.packing import TILE, AttentionBlock, PackedBatch

IMPLEMENTATION = "sumzero_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedBatch | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of every packed row over the rows of its own sequence.

    Args:
        query: [1, heads, T, D]. key, value: [1, key heads, T, D].
        attention_mask: unused; the packed batch says who sees whom.
        sliding_window: a query sees keys less than this far away.
        softcap: logits become softcap · tanh(logits / softcap) before the mask (Gemma-2).

    Returns:
        [1, T, heads, D], and no weights.

    Raises:
        RuntimeError: the model was called without a packed batch.
    """
    if packed is None:
        raise RuntimeError(f"{IMPLEMENTATION} attention needs a packed batch")
    heads, dim = query.shape[1], query.shape[3]
    scale = dim**-0.5 if scaling is None else scaling
    query_TD, key_TD, value_TD = (_token_major(x) for x in (query, key, value))
    outputs = [
        _attend(packed, index, query_TD, key_TD, value_TD, dim, scale, sliding_window, softcap)
        for index in range(len(packed.blocks))
    ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.index_select(0, packed.output_rows_T).view(1, -1, heads, dim), None


def _token_major(x: Tensor) -> Tensor:
    """[1, heads, T, D] → [T, heads · D]."""
    return x[0].transpose(0, 1).reshape(x.shape[2], -1)


def _attend(
    packed: PackedBatch,
    index: int,
    query_TD: Tensor,
    key_TD: Tensor,
    value_TD: Tensor,
    dim: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One block: [tiles · Q, heads · D]."""
    block = packed.blocks[index]
    tiles, queries = block.query_rows_BQ.shape
    key_heads = key_TD.shape[1] // dim
    group = query_TD.shape[1] // key_TD.shape[1]

    query = query_TD.index_select(0, block.query_rows_BQ.view(-1))
    query = query.view(tiles, queries, key_heads, group, dim).permute(0, 2, 3, 1, 4)
    query = query.reshape(tiles, key_heads, group * queries, dim)
    rows = block.key_rows_BK.view(-1)
    key = key_TD.index_select(0, rows).view(tiles, -1, key_heads, dim).transpose(1, 2)
    value = value_TD.index_select(0, rows).view(tiles, -1, key_heads, dim).transpose(1, 2)

    mask = _mask(packed, index, group, window, query.dtype)
    if softcap is None:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    else:
        output = _softcapped(query, key, value, mask, scale, softcap)
    output = output.view(tiles, key_heads, group, queries, dim).permute(0, 3, 1, 2, 4)
    return output.reshape(tiles * queries, -1)


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    logits = query @ key.transpose(2, 3) * scale
    logits = torch.tanh(logits / softcap) * softcap + mask
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _mask(
    packed: PackedBatch, index: int, group: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """Additive mask of a block, 0 or -inf, for ``group`` stacked copies of its queries."""
    name = (index, window, dtype, group)
    if name not in packed.masks:
        block = packed.blocks[index]
        visible = (_causal if packed.causal else _whole)(block, window)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        mask = mask.masked_fill_(~visible, float("-inf"))
        packed.masks[name] = _stack(mask, group)
    return packed.masks[name]


def _stack(mask: Tensor, group: int) -> Tensor:
    """Repeat the query axis ``group`` times, head by head; a broadcast axis stays as it is."""
    return mask if mask.shape[-2] == 1 else torch.cat([mask] * group, dim=-2)


def _causal(block: AttentionBlock, window: int | None) -> Tensor:
    """[Q, K]: the same for every tile of a depth."""
    device = block.key_rows_BK.device
    query = block.query_start + torch.arange(block.query_rows_BQ.shape[1], device=device)[:, None]
    key = torch.arange(block.key_rows_BK.shape[1], device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (query - key < window)


def _whole(block: AttentionBlock, window: int | None) -> Tensor:
    """[B, 1, 1 or Q, K]: keys past a sequence's end are hidden.

    Query slots past the end look from the last token: a row that sees nothing would be NaN, and
    would reach the keys' gradients.
    """
    device = block.key_rows_BK.device
    length = block.lengths_B.to(device)[:, None, None, None]
    key = torch.arange(block.key_rows_BK.shape[1], device=device)[None, None, None, :]
    visible = key < length
    if window is None or (block.key_rows_BK.shape[1] <= TILE and window >= TILE):
        return visible
    query = torch.arange(block.query_rows_BQ.shape[1], device=device)[None, None, :, None]
    distance = (torch.minimum(query, length - 1) - key).abs()
    return visible & (distance < window)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
