"""Linear layers on a CPU: exact for any number of rows, with what follows a product at its end."""

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from reward_model.kernels.library import Isa, call, isa, level, suits
from reward_model.kernels.room import empty
from reward_model.row_cuts import CutLinear

MULTIPLE = 32
"""Of both sides of a weight; rows are at least as many."""
KEPT_BYTES = 1 << 30
"""A model whose linear weights are smaller keeps them packed as well. Packing takes 3 to 8 % of the
product of 2,048 rows; a large model's weights are packed at every use, and none is kept twice."""
_PACKED = "_sumzero_packed"
_steps = 0
"""Of all optimisers of this process."""


class KernelLinear(CutLinear):
    """``nn.Linear``, whose parameters it has."""

    def forward(self, input: Tensor) -> Tensor:
        if linear_suits(input, self.weight):
            return linear(input, self.weight, self.bias)
        return super().forward(input)


def linear_suits(input: Tensor, weight: Tensor) -> bool:
    """Whether a layer is computed here.

    Without matrix tiles oneDNN's products are as fast (AMD Zen 4: 445 and 220 GFLOP/s, both), but
    gate, activation and residual come after them: scoring took 1.05 times as long in float32, 1.07
    to 1.11 in bfloat16. With AVX2 alone (Zen 3) ours run at 135 GFLOP/s in both, oneDNN's at 125
    and 15. On an Intel Xeon without tiles MKL's run at 220 to 320 GFLOP/s in float32, oneDNN's at
    160 in bfloat16, ours at 315 to 345 and 290 to 310.
    """
    outer, inner = weight.shape
    return (
        outer % MULTIPLE == inner % MULTIPLE == 0
        and input.numel() >= MULTIPLE * inner
        and level(input.dtype, input.device) is not Isa.NONE
        and suits(input, weight)
    )


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    gelu: bool = False,
) -> Tensor:
    """f(input · weightᵀ + bias) + residual, [..., K] × [N, K] → [..., N]; f is GELU or nothing.

    Summed in float32 and rounded once. ``residual`` has the output's shape.
    """
    outer, inner = weight.shape
    input_RK, more = _rows(input), None if residual is None else residual.contiguous()
    output = empty(input, *input.shape[:-1], outer)
    call(
        "linear", input_RK, input_RK.stride(0), packed(weight), bias, more, gelu, output,
        len(input_RK), outer, inner, torch.get_num_threads(), isa(),
    )  # fmt: skip
    return output


def gated_linear(input: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(input · gateᵀ) · (input · upᵀ), element by element, [..., K] × 2 [N, K] → [..., N]."""
    outer, inner = gate.shape
    input_RK = _rows(input)
    output = empty(input, *input.shape[:-1], outer)
    call(
        "gated_linear", input_RK, input_RK.stride(0), packed(gate), packed(up), output,
        len(input_RK), outer, inner, torch.get_num_threads(), isa(),
    )  # fmt: skip
    return output


def packed(weight: Tensor) -> Tensor:
    """A weight as the kernels read it. Kept on the weight where :func:`keep_packed` said so."""
    state = (weight.data_ptr(), None if weight.is_inference() else weight._version, _steps)
    kept: tuple[object, Tensor | None] | None = getattr(weight, _PACKED, None)
    if kept is not None and kept[1] is not None and kept[0] == state:
        return kept[1]
    weight_NK = weight.contiguous()
    result = torch.empty_like(weight_NK, requires_grad=False)
    call("pack_weight", weight_NK, *weight.shape, result, torch.get_num_threads())
    if kept is not None and not weight.is_inference():
        setattr(weight, _PACKED, (state, result))
    return result


def is_kept(weight: Tensor) -> bool:
    """Whether a weight is packed once, and not at every use."""
    return hasattr(weight, _PACKED) and not weight.is_inference()


def _count_step(*_: object) -> None:
    global _steps
    _steps += 1


# Fused optimisers change weights without counting a version.
register_optimizer_step_post_hook(_count_step)


def keep_packed(model: nn.Module) -> None:
    """Let the weights of a model that is small enough be packed once and not at every use."""
    weights = [m.weight for m in model.modules() if isinstance(m, KernelLinear)]
    if sum(weight.nbytes for weight in weights) < KEPT_BYTES:
        for weight in weights:
            if not hasattr(weight, _PACKED):
                setattr(weight, _PACKED, (None, None))


def _rows(input: Tensor) -> Tensor:
    rows = input.reshape(-1, input.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
