"""Whole layers of a transformer, each in one call."""

import ctypes
from dataclasses import dataclass

from torch import Tensor, nn

from reward_model.kernels.attention import Arguments, Queries, scratch_elements
from reward_model.kernels.library import kernel
from reward_model.kernels.linear import packed as packed_weight
from reward_model.kernels.room import empty
from reward_model.packing import PackedBatch


@dataclass(frozen=True, eq=False)
class Norm:
    """RMSNorm or LayerNorm, by its parameters."""

    weight: Tensor
    epsilon: float
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Parts:
    """What a layer is made of: linear layers and norms that the kernels compute.

    ``gate`` is a decoder's. ``before`` and ``after`` stand where the layer has them: in a decoder
    before attention and before the feed-forward part, in an encoder after them.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    context: nn.Linear
    up: nn.Linear
    down: nn.Linear
    before: Norm
    after: Norm
    head_dim: int
    scale: float
    gate: nn.Linear | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    window: int | None = None


def layer(
    parts: Parts, x: Tensor, packed: PackedBatch, rotation: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """A decoder's layer, if there is a gate, or an encoder's, over a packed batch.

    Args:
        x: [1, T, H], contiguous. rotation: cosine and sine, [1, T, D], contiguous.

    Returns:
        [1, T, H]; bit for bit what its parts give one after another.
    """
    rows, width = x.shape[1:]
    wide, narrow = parts.query.out_features, parts.key.out_features
    inner, dim = parts.up.out_features, parts.head_dim
    queries = Queries.of_tiles(packed)
    arguments = Arguments.of(
        packed, queries, wide // dim, narrow // dim, dim, scale=parts.scale, window=parts.window
    )
    of_attention = empty(x, scratch_elements(packed, narrow // dim, dim))
    arguments.packed = of_attention.data_ptr()
    scratch = empty(x, rows * (2 * width + max(2 * wide + 2 * narrow, inner)))
    output = empty(x, *x.shape)
    cosine, sine = rotation or (None, None)
    linears = (parts.query, parts.key, parts.value, parts.context, parts.gate, parts.up, parts.down)
    weights = [None if one is None else packed_weight(one.weight) for one in linears]
    whole = _Layer(
        x.data_ptr(), output.data_ptr(), scratch.data_ptr(), ctypes.pointer(arguments),
        _address(cosine), _address(sine), rows, width, inner, packed.computed_tokens,
        *(_Projection(_address(weight), None if one is None else _address(one.bias))
          for weight, one in zip(weights, linears, strict=True)),
        *map(_norm, (parts.before, parts.after, parts.query_norm, parts.key_norm)),
    )  # fmt: skip
    name = "encoder_layer" if parts.gate is None else "decoder_layer"
    kernel(name, x.dtype)(ctypes.byref(whole))
    return output


class _Projection(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Norm(ctypes.Structure):
    _fields_ = [*_Projection._fields_, ("epsilon", ctypes.c_float)]


class _Layer(ctypes.Structure):
    """``Layer`` in ``layer.c``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "out", "scratch")),
        ("attention", ctypes.POINTER(Arguments)),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine")),
        *((name, ctypes.c_long) for name in ("rows", "width", "inner", "attended")),
        *((name, _Projection)
          for name in ("query", "key", "value", "context", "gate", "up", "down")),
        *((name, _Norm) for name in ("before", "after", "query_norm", "key_norm")),
    ]  # fmt: skip


def _norm(norm: Norm | None) -> _Norm:
    if norm is None:
        return _Norm()
    return _Norm(norm.weight.data_ptr(), _address(norm.bias), norm.epsilon)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
