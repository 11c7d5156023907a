"""Products in half precision on processors with matrix tiles (AMX), cut so that they are exact.

There oneDNN goes by the number of rows when it decides in what order to add up: a product of
[M, 512] × [512, 512] in bfloat16 adds in one order up to M = 192 and in another from 256 on (Intel
Xeon, two threads), and most scores of a batch were not those of batch size 1. So every number of
rows is tried once for every shape of weight, and only those are computed that add up as the largest
does. Other numbers are cut into such parts, or filled up with zeros.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_model.linear import Linear
from reward_model.packing import ROW_MULTIPLE

LARGEST = 2048
"""Rows computed at once at most."""
PART = 32
"""What it costs to compute one part more, in rows."""


@cache
def needed() -> bool:
    """Whether this processor has matrix tiles."""
    return bool(torch.cpu.get_capabilities().get("amx_tile"))


def use_row_cuts(model: nn.Module) -> None:
    """Let every plain linear layer of ``model`` cut what it scores, if need be; in place."""
    if needed():
        for module in model.modules():
            if type(module) in (nn.Linear, Linear):
                module.__class__ = CutLinear


class CutLinear(Linear):
    """``nn.Linear``, whose parameters it has."""

    def forward(self, input: Tensor) -> Tensor:
        if suits(input, self.weight):
            return linear(input, self.weight, self.bias)
        return super().forward(input)


def suits(input: Tensor, weight: Tensor) -> bool:
    """Whether a product is to be cut: half precision, on a CPU that asks for it, for a score."""
    return (
        needed()
        and not torch.is_grad_enabled()
        and input.device.type == weight.device.type == "cpu"
        and input.dtype == weight.dtype
        and input.dtype in (torch.bfloat16, torch.float16)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """input · weightᵀ + bias, [..., K] × [N, K] → [..., N]; a row's bits are its own."""
    outer, inner = weight.shape
    rows = input.numel() // inner
    known = sizes(inner, outer, bias is not None, weight.dtype, torch.get_num_threads())
    input_RK, output_RN = input.reshape(rows, inner), input.new_empty(rows, outer)
    start = 0
    for size in cuts(rows, known):
        part = input_RK[start : start + size]
        if missing := size - len(part):
            output_RN[start:] = _product(F.pad(part, (0, 0, 0, missing)), weight, bias)[:-missing]
        else:
            _product(part, weight, bias, out=output_RN[start : start + size])
        start += size
    return output_RN.view(*input.shape[:-1], outer)


def _product(
    input: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor | None = None
) -> Tensor:
    if bias is None:
        return torch.mm(input, weight.t(), out=out)
    return torch.addmm(bias, input, weight.t(), out=out)


@cache
def sizes(inner: int, outer: int, bias: bool, dtype: torch.dtype, threads: int) -> tuple[int, ...]:
    """The multiples of 64, up to ``LARGEST``, at which a product adds up as at ``LARGEST`` itself.

    Tried on rows whose exact products are 0: what is left of them shows the order of the sum.

    Args:
        threads: that PyTorch computes with now; the order depends on it, too.
    """
    input, weight = cancelling((LARGEST, inner), (outer, inner), dtype)
    zeros = torch.zeros(outer, dtype=dtype) if bias else None
    whole = _product(input, weight, zeros)
    return tuple(
        rows
        for rows in range(ROW_MULTIPLE, LARGEST + 1, ROW_MULTIPLE)
        # The last rows: where a row stands must not matter either.
        if torch.equal(_product(input[-rows:], weight, zeros), whole[-rows:])
    )


def cancelling(
    left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Random factors [..., M, K] and [..., N, K] whose exact product, left · rightᵀ, is 0."""
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(left, generator=random), torch.randn(right, generator=random)
    half = left[-1] // 2
    order = torch.randperm(half, generator=random)
    other[..., half : 2 * half] = other[..., :half][..., order]
    one[..., half : 2 * half] = -one[..., :half][..., order]
    one[..., 2 * half :] = 0
    return one.to(dtype), other.to(dtype)


@cache
def cuts(rows: int, known: tuple[int, ...]) -> tuple[int, ...]:
    """``rows`` as a sum of known sizes; the last part may reach beyond the end.

    The sum with the least to compute, where every part costs as much as ``PART`` rows more.
    """
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for left in range(ROW_MULTIPLE, rows + ROW_MULTIPLE, ROW_MULTIPLE):
        best.append(
            min(
                (cost + size + PART, (size, *parts))
                for size in known
                for cost, parts in [best[max(left - size, 0) // ROW_MULTIPLE]]
            )
        )
    return tuple(sorted(best[-1][1], reverse=True))
