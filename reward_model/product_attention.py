"""Attention with gradients as batched matrix products, for half precision on CPUs.

PyTorch's fused kernel for CPUs takes 2 to 9 times as long there, most of it in its backward pass
(bfloat16, AMD Zen 5; `python -m benchmarks.reward_training` compares whole steps). In float32 the
two are alike, and the fused kernel is taken.

On processors with matrix tiles oneDNN makes a kernel for every shape, which took a third of a small
model's training step, and keeps 1,024 of them; so lengths are filled up there to a few.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from reward_model import row_cuts
from reward_model.attend import LOGITS

KEPT_KEYS = 512
"""Weights over more keys are computed again in the backward pass: kept, they would need more memory
than all else that a layer keeps."""


def attend_with_gradient(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float
) -> Tensor:
    """softmax(scale · Q Kᵀ + mask) V, [1, N, M, D].

    Args:
        query: [1, N, M, D]. key, value: [1, N, K, D].
        mask: additive, [M, K], for all N.
    """
    if not suits(query):
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    result: Tensor = ProductAttention.apply(  # type: ignore[no-untyped-call]
        query.to(value.dtype), key.to(value.dtype), value, mask, scale
    )
    return result


def suits(query: Tensor) -> bool:
    """Whether products are the faster way: half precision, by itself or by autocast, on a CPU."""
    if query.device.type != "cpu":
        return False
    return torch.is_autocast_enabled("cpu") or query.dtype in (torch.bfloat16, torch.float16)


class ProductAttention(Function):
    """See :func:`attend_with_gradient`."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        queries, keys = query.shape[2], key.shape[2]
        ctx.mask, ctx.scale = _mask(mask, queries, keys, query), scale
        kept: list[Tensor] = []
        query_NMD, key_NKD, value_NKD = map(_filled, (query, key, value))
        output = torch.empty_like(query_NMD)
        with torch.autocast("cpu", enabled=False):
            for some in _few(query_NMD, key_NKD):
                weights = _weights(query_NMD[some], key_NKD[some], ctx.mask, scale)
                torch.bmm(weights, value_NKD[some], out=output[some])
                if keys <= KEPT_KEYS and any(ctx.needs_input_grad):
                    kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        return output[None, :, :queries]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        query, key, value, *kept = ctx.saved_tensors
        queries, keys = query.shape[2], key.shape[2]
        query, key, value, grad = map(_filled, (query, key, value, grad))
        of_query, of_key, of_value = map(torch.empty_like, (query, key, value))
        with torch.autocast("cpu", enabled=False):
            for index, some in enumerate(_few(query, key)):
                weights = (
                    kept[index] if kept else _weights(query[some], key[some], ctx.mask, ctx.scale)
                )
                torch.bmm(weights.transpose(1, 2), grad[some], out=of_value[some])
                of_weights = torch.bmm(grad[some], value[some].transpose(1, 2))
                of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                torch.bmm(of_logits, key[some], out=of_query[some])
                torch.bmm(of_logits.transpose(1, 2), query[some], out=of_key[some])
        of_query.mul_(ctx.scale)
        of_key.mul_(ctx.scale)
        of_query, of_key, of_value = of_query[:, :queries], of_key[:, :keys], of_value[:, :keys]
        return of_query[None], of_key[None], of_value[None], None, None


def filled_up(length: int) -> int:
    """The length that is computed for ``length``: at most an eighth more from 256 on."""
    if not row_cuts.needed():
        return length
    step = max(32, 1 << max((length - 1).bit_length() - 4, 0))
    return -(-length // step) * step


def _filled(x: Tensor) -> Tensor:
    """[1, N, L, D] → [N, filled-up L, D], contiguous, with zeros at the end."""
    length = x.shape[2]
    if (whole := filled_up(length)) == length:
        return x[0].contiguous()
    filled = x.new_zeros(x.shape[1], whole, x.shape[3])
    filled[:, :length] = x[0]
    return filled


def _mask(mask: Tensor | None, queries: int, keys: int, like: Tensor) -> Tensor | None:
    """``mask``, and -inf for keys that are filled up; filled-up queries see all others."""
    rows, columns = filled_up(queries), filled_up(keys)
    if (rows, columns) == (queries, keys) or (mask is None and columns == keys):
        return mask
    filled = like.new_zeros(1 if mask is None else rows, columns)
    filled[:, keys:] = float("-inf")
    if mask is not None:
        filled[:queries, :keys] = mask
    return filled


def _few(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Matrices to compute at once."""
    step = max(LOGITS // (query.shape[1] * key.shape[1]), 1)
    for first in range(0, len(query), step):
        yield slice(first, min(first + step, len(query)))


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    shape = len(query), query.shape[1], key.shape[1]
    added = query.new_zeros(()) if mask is None else mask.to(query.dtype)
    logits = torch.baddbmm(
        added.expand(shape), query, key.transpose(1, 2), beta=int(mask is not None), alpha=scale
    )
    return torch.softmax(logits, dim=-1)
