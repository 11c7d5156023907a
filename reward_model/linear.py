"""Linear layers in float32 on a CPU, by oneDNN.

PyTorch gives float32 products to MKL, which runs at less than half of oneDNN's speed where the
processor is not Intel's (AMD Zen 5, two cores: 225 against 480 GFLOP/s), and bfloat16 products to
oneDNN. Here both go there; on Intel's processors, where MKL is the faster one (195 against 175),
all stays as it is. A row's bits do not depend on how many rows there are, as long as those are a
multiple of 64.
"""

import platform
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from reward_model.processor import made_by_intel


@cache
def available() -> bool:
    """Whether this machine has oneDNN's products in the form used here."""
    present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return present and platform.machine() in ("x86_64", "AMD64")


@cache
def preferred() -> bool:
    """Whether they are faster than MKL's: a matter of who made the processor."""
    return available() and not made_by_intel()


def use_onednn(model: nn.Module) -> None:
    """Let every plain linear layer of ``model`` use them, where they suit its input; in place."""
    if preferred():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear


class Linear(nn.Linear):
    """``nn.Linear``, whose parameters it has."""

    def forward(self, input: Tensor) -> Tensor:
        if not suits(input, self.weight):
            return super().forward(input)
        if torch.is_grad_enabled():
            result: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias
            )
            return result
        return product(input, self.weight, self.bias)


class _Product(Function):
    @staticmethod
    def forward(ctx: FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        grad_MN, input_MK = grad.reshape(-1, grad.shape[-1]), input.reshape(-1, input.shape[-1])
        return (
            product(grad_MN, weight.t()).view_as(input) if of_input else None,
            product(grad_MN.t(), input_MK.t()) if of_weight else None,
            grad_MN.sum(0) if of_bias else None,
        )


def suits(input: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product of these two is to be preferred: float32, on a CPU."""
    return (
        preferred()
        and input.device.type == weight.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input · weightᵀ + bias, [..., K] × [N, K] → [..., N]. Without a gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return result
