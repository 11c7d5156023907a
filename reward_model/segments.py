"""Attention with gradients: one call per segment of the packed rows, at its exact length.

Scores have to be equal bit by bit, which the fixed tiles of :mod:`reward_model.attention` pay for
with copied keys and rounded lengths. Gradients do not, so training takes the cheapest calls that
compute the same function. A segment is a run of rows that no sequence leaves or enters in between;
it attends to itself and to the segments before it, views of the packed rows where it shares
nothing. Masked queries go in chunks, so that few hidden keys are computed, and query heads that
share a key head are stacked along the query axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_model.packing import PackedBatch
from reward_model.product_attention import attend_with_gradient, suits
from reward_model.tiles import Segment

CHUNK = 256
"""About as many queries per masked call: CPU kernels are as fast as with more."""


@dataclass(frozen=True)
class Kind:
    """What every call of a layer has in common."""

    causal: bool
    scale: float
    window: int | None
    softcap: float | None

    @property
    def masked(self) -> bool:
        return self.causal or self.window is not None

    def keys(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The first key that a query in ``start`` … ``stop`` sees, and the one after the last."""
        if self.window is None:
            return 0, stop if self.causal else length
        last = stop if self.causal else min(stop + self.window - 1, length)
        return max(start - self.window + 1, 0), last


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of all rows.

    Args:
        query: [1, heads, T, D]. key, value: [1, key heads, T, D].
        window: a query sees keys less than this far away.
        softcap: logits become softcap · tanh(logits / softcap) before the mask.

    Returns:
        [1, T, heads, D]; zeros for filler rows.
    """
    kind = Kind(packed.causal, scale, window, softcap)
    heads, dim = query.shape[1], query.shape[3]
    segments = packed.segments
    sizes = [segment.length for segment in segments] + [packed.filler]
    grouped = query.view(1, key.shape[1], -1, *query.shape[2:])
    queries = torch.split(grouped, sizes, dim=3)
    keys, values = torch.split(key, sizes, dim=2), torch.split(value, sizes, dim=2)
    outputs: list[Tensor] = []
    for index, segment in enumerate(segments):
        chain = (*segment.ancestors, index)
        seen = _joined([keys[i] for i in chain]), _joined([values[i] for i in chain])
        outputs += _attend(queries[index], *seen, packed, segment, kind)
    filler = query.new_zeros(1, packed.filler, heads, dim)
    return torch.cat([*(output.reshape(1, -1, heads, dim) for output in outputs), filler], dim=1)


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, segment: Segment, kind: Kind
) -> Iterator[Tensor]:
    """Pieces of [1, L, key heads, group, D], for queries [1, key heads, group, L, D]."""
    length = key.shape[2]
    flash = query.is_cuda and not segment.ancestors and kind.window is None
    if kind.softcap is None and (flash or not kind.masked) and not suits(query):
        heads = query.flatten(1, 2)
        output = F.scaled_dot_product_attention(
            heads,
            key,
            value,
            is_causal=kind.causal,
            scale=kind.scale,
            enable_gqa=heads.shape[1] != key.shape[1],
        )
        yield output.view(query.shape).permute(0, 3, 1, 2, 4)
        return
    chunks = max(round(segment.length / CHUNK), 1)
    start = segment.start
    for part in query.tensor_split(chunks, dim=3):
        stop = start + part.shape[3]
        first, last = kind.keys(start, stop, length)
        mask = None
        if kind.masked or kind.softcap is not None:
            mask = _mask(packed, (start, stop), (first, last), part.shape[2], kind, query.dtype)
        stacked = part.flatten(2, 3)
        seen = key[:, :, first:last], value[:, :, first:last]
        if kind.softcap is None:
            output = attend_with_gradient(stacked, *seen, mask, scale=kind.scale)
        else:
            assert mask is not None
            output = _softcapped(stacked, *seen, mask, kind.scale, kind.softcap)
        yield output.view(part.shape).permute(0, 3, 1, 2, 4)
        start = stop


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    logits = query @ key.transpose(2, 3) * scale
    logits = torch.tanh(logits / softcap) * softcap + mask
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _mask(
    packed: PackedBatch,
    queries: tuple[int, int],
    keys: tuple[int, int],
    group: int,
    kind: Kind,
    dtype: torch.dtype,
) -> Tensor:
    """Additive mask of positions, 0 or -inf, [group · queries, keys]; made once per batch."""
    name = ("segment", queries, keys, group, kind.window, dtype)
    if name not in packed.cache:
        query, key = (torch.arange(*one, device=packed.device) for one in (queries, keys))
        distance = query[:, None] - key[None, :]
        hidden = distance < 0 if kind.causal else torch.zeros_like(distance, dtype=torch.bool)
        if kind.window is not None:
            hidden |= distance.abs() >= kind.window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=packed.device)
        packed.cache[name] = mask.masked_fill_(hidden, float("-inf")).repeat(group, 1)
    found: Tensor = packed.cache[name]
    return found
