"""What a decoder does row by row between its products, on a GPU.

Every row is one program's, of a size that only the row's length decides. Rounded where transformers
rounds, but for the rotation and the gate, which are rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from reward_model.kernels.gpu import aligned

_GATE_BLOCK = 2048


def rms_norm(input: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight · input / √(mean(input²) + ε) over the last axis, rounded before ``weight`` too."""
    input, width = aligned(input), input.shape[-1]
    output = torch.empty_like(input)
    block = triton.next_power_of_2(width)
    _rms_norm[(input.numel() // width,)](
        input, aligned(weight), output, epsilon, width, block, num_warps=_warps(block)
    )
    return output


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, in place: x cos + rotate_half(x) sin.

    Args:
        heads: [1, T, heads, D], contiguous. cosine, sine: [1, T, D].
    """
    _, rows, count, dim = heads.shape
    half = triton.next_power_of_2(dim // 2)
    together = min(triton.next_power_of_2(count), max(2048 // half, 1))
    grid = (rows, triton.cdiv(count, together))
    _rotate[grid](heads, aligned(cosine), aligned(sine), count, dim // 2, half, together)
    return heads


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, written over ``gate``; both contiguous."""
    size = gate.numel()
    _gate[(triton.cdiv(size, _GATE_BLOCK),)](gate, up, size, _GATE_BLOCK, num_warps=8)
    return gate


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


@triton.jit
def _rms_norm(
    input,
    weight,
    output,
    epsilon,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    x = tl.load(input + start + at, mask=inside, other=0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + epsilon)
    kind = output.dtype.element_ty
    normal = (x * scale).to(kind).to(tl.float32)
    y = normal * tl.load(weight + at, mask=inside, other=0).to(tl.float32)
    tl.store(output + start + at, y.to(kind), mask=inside)


@triton.jit
def _rotate(
    heads,
    cosine,
    sine,
    COUNT: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TOGETHER + tl.arange(0, TOGETHER)
    at = tl.arange(0, BLOCK)
    near = row * (2 * HALF) + at
    cosine_a = tl.load(cosine + near, mask=at < HALF, other=0).to(tl.float32)[None, :]
    cosine_b = tl.load(cosine + near + HALF, mask=at < HALF, other=0).to(tl.float32)[None, :]
    sine_a = tl.load(sine + near, mask=at < HALF, other=0).to(tl.float32)[None, :]
    sine_b = tl.load(sine + near + HALF, mask=at < HALF, other=0).to(tl.float32)[None, :]
    first = heads + (row * COUNT + head)[:, None] * (2 * HALF) + at[None, :]
    inside = (head < COUNT)[:, None] & (at < HALF)[None, :]
    a = tl.load(first, mask=inside, other=0).to(tl.float32)
    b = tl.load(first + HALF, mask=inside, other=0).to(tl.float32)
    kind = heads.dtype.element_ty
    tl.store(first, (a * cosine_a - b * sine_a).to(kind), mask=inside)
    tl.store(first + HALF, (b * cosine_b + a * sine_b).to(kind), mask=inside)


@triton.jit
def _gate(gate, up, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(gate + at, mask=inside, other=0).to(tl.float32)
    y = x / (1 + tl.exp(-x)) * tl.load(up + at, mask=inside, other=0).to(tl.float32)
    tl.store(gate + at, y.to(gate.dtype.element_ty), mask=inside)
