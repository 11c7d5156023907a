"""Attention with gradients on a GPU: all segments of the packed rows in one call.

:mod:`reward_model.segments` calls a kernel for each segment, which on a GPU takes longer to start
than to run. PyTorch's flash attention takes lengths instead. Keys of a shared prefix are copied to
every segment that follows it; masks are aligned to the last key, where a segment's queries stand.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from reward_model.packing import PackedBatch
from reward_model.tiles import Segment

GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether key heads may be fewer (from PyTorch 2.12 on)."""


@dataclass(frozen=True)
class Lengths:
    """Cumulative lengths, the longest of each, and the packed row of every key.

    ``rows_K``: None where every segment sees itself only.
    """

    queries: list[int]
    keys: list[int]
    max_queries: int
    max_keys: int
    rows_K: list[int] | None


def varlen_suits(value: Tensor, softcap: float | None) -> bool:
    """Whether flash attention computes it: half precision on CUDA, logits not capped."""
    dim = value.shape[-1]
    half = value.dtype in (torch.bfloat16, torch.float16)
    return value.is_cuda and half and softcap is None and dim % 8 == 0 and dim <= 256


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    *,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Attention of all rows, in the dtype of ``value``.

    Args:
        query: [1, heads, T, D]. key, value: [1, key heads, T, D].
        window: a query sees keys less than this far away.

    Returns:
        [1, T, heads, D]; zeros for filler rows.
    """
    lengths, queries, keys, rows_K = _on_device(packed)
    filler, group = packed.filler, query.shape[1] // key.shape[1]
    query_THD, key_KHD, value_KHD = (
        x[0].transpose(0, 1)[: len(x[0, 0]) - filler].to(value.dtype) for x in (query, key, value)
    )
    if rows_K is not None:
        key_KHD, value_KHD = (x.index_select(0, rows_K) for x in (key_KHD, value_KHD))
    if group > 1 and not GROUPED:
        key_KHD, value_KHD = (x.repeat_interleave(group, dim=1) for x in (key_KHD, value_KHD))
    grouped: dict[str, Any] = {"enable_gqa": True} if group > 1 and GROUPED else {}
    far = -1 if window is None else window - 1
    output = varlen_attn(
        query_THD, key_KHD, value_KHD, queries, keys, lengths.max_queries, lengths.max_keys,
        scale=scale, window_size=(far, 0 if packed.causal else far), **grouped,
    )  # fmt: skip
    assert isinstance(output, Tensor)
    return torch.cat([output, output.new_zeros(filler, *output.shape[1:])])[None]


def lengths_of(segments: Sequence[Segment]) -> Lengths:
    """Of segments in the order of their rows."""
    own = [segment.length for segment in segments]
    seen = [segment.start + segment.length for segment in segments]
    rows_K = None
    if any(segment.ancestors for segment in segments):
        stops = list(accumulate(own))
        rows = [range(stop - length, stop) for stop, length in zip(stops, own, strict=True)]
        chains = [(*segment.ancestors, index) for index, segment in enumerate(segments)]
        rows_K = [row for chain in chains for index in chain for row in rows[index]]
    return Lengths(
        list(accumulate(own, initial=0)), list(accumulate(seen, initial=0)),
        max(own), max(seen), rows_K,
    )  # fmt: skip


def _on_device(packed: PackedBatch) -> tuple[Lengths, Tensor, Tensor, Tensor | None]:
    """The lengths and their tensors, made once per batch."""
    if "varlen" not in packed.cache:
        found = lengths_of(packed.segments)
        queries, keys = (
            torch.tensor(x, dtype=torch.int32, device=packed.device)
            for x in (found.queries, found.keys)
        )
        rows = None if found.rows_K is None else torch.tensor(found.rows_K, device=packed.device)
        packed.cache["varlen"] = found, queries, keys, rows
    made: tuple[Lengths, Tensor, Tensor, Tensor | None] = packed.cache["varlen"]
    return made
