"""What a model does row by row between its products."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_model.kernels.library import call
from reward_model.kernels.room import empty

MULTIPLE = 16
"""Of a normalised row; half a rotated head, too."""


def rms_norm(input: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight · input / √(mean(input²) + ε) over the last axis, rounded before ``weight`` too."""
    if input.is_cuda:
        from reward_model.kernels import gpu_rows  # needs Triton

        return gpu_rows.rms_norm(input, weight, epsilon)
    input_RD = input.reshape(-1, input.shape[-1])
    output = empty(input, *input.shape)
    call("rms_norm", input_RD, weight, output, *input_RD.shape, epsilon, torch.get_num_threads())
    return output


def layer_norm(input: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """weight · (input − mean) / √(variance + ε) + bias over the last axis, rounded once."""
    input_RD = input.reshape(-1, input.shape[-1])
    output = empty(input, *input.shape)
    threads = torch.get_num_threads()
    call("layer_norm", input_RD, weight, bias, output, *input_RD.shape, epsilon, threads)
    return output


def embed(
    tables: Sequence[Tensor],
    ids: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    epsilon: float,
) -> Tensor:
    """LayerNorm of the sum of three embeddings, rounded after each addition: [1, T, D].

    Args:
        tables: [·, D], contiguous. ids: rows of each, int64 [1, T], contiguous.

    Raises:
        IndexError: a table has no such row.
    """
    for table, of_table in zip(tables, ids, strict=True):
        least, most = (int(bound) for bound in of_table.aminmax())
        if least < 0 or most >= len(table):
            raise IndexError(f"rows {least} to {most} of an embedding that has {len(table)}")
    output = empty(weight, *ids[0].shape, len(weight))
    call(
        "embed", *tables, *ids, weight, bias, output, ids[0].numel(), len(weight), epsilon,
        torch.get_num_threads(),
    )  # fmt: skip
    return output


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, in place: x cos + rotate_half(x) sin.

    Args:
        heads: [1, T, heads, D], contiguous. cosine, sine: [1, T, D].
    """
    if heads.is_cuda:
        from reward_model.kernels import gpu_rows

        return gpu_rows.rotate(heads, cosine, sine)
    _, rows, count, dim = heads.shape
    call("rotate", heads, cosine, sine, rows, count, dim, torch.get_num_threads())
    return heads


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, written over ``gate``; both contiguous."""
    if gate.is_cuda:
        from reward_model.kernels import gpu_rows

        return gpu_rows.gate(gate, up)
    call("gate", gate, up, gate.numel(), torch.get_num_threads())
    return gate
