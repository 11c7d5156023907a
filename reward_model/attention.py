"""Attention over a packed batch, registered with transformers as ``sumzero_packed``.

With gradients it is one call per segment (:mod:`reward_model.segments`), and in half precision on
a GPU one call for all (:mod:`reward_model.varlen`). Without, it is one call of a kernel of our own,
on a GPU and on a CPU that has what it needs (:mod:`reward_model.kernels`). Elsewhere:

Every block of the batch (see :mod:`reward_model.packing`) is computed on tiles of one fixed shape,
each tile by itself, so that its result depends on its own rows only. In the last layer, where few
rows are read, :mod:`reward_model.row_attention` computes those.
Query heads that share a key head are stacked along the query axis: no key is copied per head.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from reward_model.attend import attend
from reward_model.kernels.attention import attention as kernel_attention
from reward_model.kernels.attention import attention_suits
from reward_model.packing import AttentionBlock, PackedBatch
from reward_model.reading import Keys, KeysTaken, Reading
from reward_model.row_attention import row_attention
from reward_model.segments import segment_attention
from reward_model.slots import keys, rows_to_slots, slots_to_rows
from reward_model.varlen import varlen_attention, varlen_suits

IMPLEMENTATION = "sumzero_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedBatch | None = None,
    reading: Reading | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of every packed row over the rows of its own sequence.

    Args:
        query: [1, heads, T, D]. key, value: [1, key heads, T, D].
        attention_mask: unused; the packed batch says who sees whom.
        reading: what the last layer is asked for (see :mod:`reward_model.reading`).
        sliding_window: a query sees keys less than this far away.
        softcap: logits become softcap · tanh(logits / softcap) before the mask (Gemma-2).

    Returns:
        [1, T, heads, D], and no weights.

    Raises:
        RuntimeError: the model was called without a packed batch.
        KeysTaken: the layer is asked for its keys and values only.
    """
    if packed is None:
        raise RuntimeError(f"{IMPLEMENTATION} attention needs a packed batch")
    heads, dim = query.shape[1], query.shape[3]
    scale = dim**-0.5 if scaling is None else scaling
    if reading is not None and reading.wants_keys:
        raise KeysTaken(Keys(key, value))
    if reading is not None and reading.keys is not None:
        output = row_attention(
            query, reading.keys.key, reading.keys.value, packed, reading.rows_N,
            scale=scale, window=sliding_window, softcap=softcap,
        )  # fmt: skip
        return output, None
    if torch.is_grad_enabled() and varlen_suits(value, softcap):
        output = varlen_attention(query, key, value, packed, scale=scale, window=sliding_window)
        return output, None
    if torch.is_grad_enabled():
        output = segment_attention(
            query, key, value, packed, scale=scale, window=sliding_window, softcap=softcap
        )
        return output, None
    # Under autocast rotated queries and keys come in float32, values in what is asked for.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if attention_suits(query, key, value):
        output = kernel_attention(
            query, key, value, packed, scale=scale, window=sliding_window, softcap=softcap
        )
        return output, None
    query_SD, key_SD, value_SD = (
        rows_to_slots(_token_major(x), packed) for x in (query, key, value)
    )
    key_heads = key.shape[1]
    group = heads // key_heads
    outputs = []
    seen = zip(keys(key_SD, packed, key_heads), keys(value_SD, packed, key_heads), strict=True)
    for index, (key_NKD, value_NKD) in enumerate(seen):
        block = packed.blocks[index]
        query_NMD = _split(query_SD[block.start : block.stop], block, dim, group)
        mask = _mask(packed, index, group, sliding_window, value.dtype)
        with torch.autocast(query.device.type, enabled=False):
            output = attend(query_NMD, key_NKD, value_NKD, mask, scale=scale, softcap=softcap)
        outputs.append(_join(output, block, dim, group))
    output_SD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return slots_to_rows(output_SD, packed).view(1, -1, heads, dim), None


def _token_major(x: Tensor) -> Tensor:
    """[1, heads, T, D] → [T, heads · D]."""
    return x[0].transpose(0, 1).reshape(x.shape[2], -1)


def _split(query: Tensor, block: AttentionBlock, dim: int, group: int) -> Tensor:
    """[B · Q, heads · D] → [B · key heads, group · Q, D]."""
    query = query.view(block.count, block.queries, -1, group, dim).permute(0, 2, 3, 1, 4)
    return query.reshape(-1, group * block.queries, dim).contiguous()


def _join(output: Tensor, block: AttentionBlock, dim: int, group: int) -> Tensor:
    """The inverse of :func:`_split`."""
    output = output.view(block.count, -1, group, block.queries, dim).permute(0, 3, 1, 2, 4)
    return output.reshape(block.count * block.queries, -1)


def _mask(
    packed: PackedBatch, index: int, group: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """Additive mask of a block, 0 or -inf, for ``group`` stacked copies of its queries."""
    name = (index, window, dtype, group)
    if name not in packed.cache:
        block = packed.blocks[index]
        visible = (_causal if packed.causal else _whole)(block, window)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        mask = mask.masked_fill_(~visible, float("-inf"))
        packed.cache[name] = _stack(mask, group)
    stacked: Tensor = packed.cache[name]
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
    """[B, 1 or Q, K]: keys past a sequence's end are hidden.

    Query slots past the end look from the last token: a row that sees nothing would be NaN.
    """
    device = block.lengths_B.device
    length = block.lengths_B[:, None, None]
    key = torch.arange(block.keys, device=device)[None, None, :]
    visible = key < length
    if window is None or window >= block.keys:
        return visible
    query = torch.arange(block.queries, device=device)[None, :, None]
    distance = (torch.minimum(query, length - 1) - key).abs()
    return visible & (distance < window)


AttentionInterface.register(IMPLEMENTATION, packed_attention)
