"""Attention over a packed batch, registered with transformers as ``sumzero_packed``.

With gradients it is one call per segment (:mod:`reward_model.segments`). Without, on CUDA, it is
one FlexAttention call (:mod:`reward_model.flex`). Elsewhere:

Every block of the batch (see :mod:`reward_model.packing`) is one call on tiles of one fixed shape.
Kernels compute the tiles of a call independently, so a tile's result depends on its own rows only.
Query heads that share a key head are stacked along the query axis: no key is copied per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from reward_model.flex import flex_packed_attention
from reward_model.packing import AttentionBlock, PackedBatch
from reward_model.segments import segment_attention
from reward_model.slots import chains, rows_to_slots, slots_to_rows

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
    if torch.is_grad_enabled():
        output = segment_attention(
            query, key, value, packed, scale=scale, window=sliding_window, softcap=softcap
        )
        return output, None
    query_SD, key_SD, value_SD = (
        rows_to_slots(_token_major(x), packed) for x in (query, key, value)
    )
    if query.is_cuda:
        output_SD = flex_packed_attention(
            query_SD, key_SD, value_SD, packed,
            dim=dim, scale=scale, window=sliding_window, softcap=softcap,
        )  # fmt: skip
        return slots_to_rows(output_SD, packed).view(1, -1, heads, dim), None
    keys, values = chains(key_SD, packed), chains(value_SD, packed)
    outputs = []
    for index, block in enumerate(packed.blocks):
        group = heads // key.shape[1]
        parts = _split(query_SD[block.start : block.stop], block, dim, group)
        mask = _mask(packed, index, group, sliding_window, query.dtype)
        key_BHKD, value_BHKD = (_heads(x[index], block, dim) for x in (keys, values))
        if softcap is None:
            output = F.scaled_dot_product_attention(
                parts, key_BHKD, value_BHKD, attn_mask=mask, scale=scale
            )
        else:
            output = _softcapped(parts, key_BHKD, value_BHKD, mask, scale, softcap)
        outputs.append(_join(output, block, dim, group))
    output_SD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return slots_to_rows(output_SD, packed).view(1, -1, heads, dim), None


def _token_major(x: Tensor) -> Tensor:
    """[1, heads, T, D] → [T, heads · D]."""
    return x[0].transpose(0, 1).reshape(x.shape[2], -1)


def _heads(x: Tensor, block: AttentionBlock, dim: int) -> Tensor:
    """Keys or values of a block, [B · K, heads · D] → [B, heads, K, D]."""
    return x.view(block.count, block.keys, -1, dim).transpose(1, 2)


def _split(query: Tensor, block: AttentionBlock, dim: int, group: int) -> Tensor:
    """[B · Q, heads · D] → [B, key heads, group · Q, D]."""
    query = query.view(block.count, block.queries, -1, group, dim).permute(0, 2, 3, 1, 4)
    return query.reshape(block.count, -1, group * block.queries, dim)


def _join(output: Tensor, block: AttentionBlock, dim: int, group: int) -> Tensor:
    """The inverse of :func:`_split`."""
    output = output.view(block.count, -1, group, block.queries, dim).permute(0, 3, 1, 2, 4)
    return output.reshape(block.count * block.queries, -1)


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
    stacked: Tensor = packed.masks[name]
    return stacked


def _stack(mask: Tensor, group: int) -> Tensor:
    """Repeat the query axis ``group`` times, head by head; a broadcast axis stays as it is."""
    return mask if mask.shape[-2] == 1 else torch.cat([mask] * group, dim=-2)


def _causal(block: AttentionBlock, window: int | None) -> Tensor:
    """[Q, K]: the same for every tile of a depth."""
    device = block.lengths_B.device
    query = block.query_start + torch.arange(block.queries, device=device)[:, None]
    key = torch.arange(block.keys, device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (query - key < window)


def _whole(block: AttentionBlock, window: int | None) -> Tensor:
    """[B, 1, 1 or Q, K]: keys past a sequence's end are hidden.

    Query slots past the end look from the last token: a row that sees nothing would be NaN.
    """
    device = block.lengths_B.device
    length = block.lengths_B[:, None, None, None]
    key = torch.arange(block.keys, device=device)[None, None, None, :]
    visible = key < length
    if window is None or window >= block.keys:
        return visible
    query = torch.arange(block.queries, device=device)[None, None, :, None]
    distance = (torch.minimum(query, length - 1) - key).abs()
    return visible & (distance < window)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
