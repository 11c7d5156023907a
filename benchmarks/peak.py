"""How much of the machine's matrix-product rate scoring reaches, and where the rest goes.

FLOPs are those of the function computed: two per weight of a linear layer and token, four per head
dimension and visible (query, key) pair. Masked pairs, fillers and copies count as time only.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from benchmarks.interleaved import Arm
from reward_model.attention import IMPLEMENTATION
from reward_model.kernels import layers, modules
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.tiles import TILE


def linears(model: RewardModel) -> list[nn.Linear]:
    """The linear layers that every token passes; the score head sees one token of a sequence."""
    return [m for m in model.backbone.modules() if isinstance(m, nn.Linear)]


def linear_flops(model: RewardModel, tokens: int, sequences: int) -> float:
    """Once a sequence what follows the keys in the last layer, and for every token all else."""
    few = _once_a_sequence(model)
    return sum(
        2.0 * (sequences if layer in few else tokens) * layer.weight.numel()
        for layer in linears(model)
    )


def attention_flops(model: RewardModel, lengths: Sequence[int]) -> float:
    """Scores and weighted values of every query over the keys it sees; in the last layer of one."""
    config = model.classifier.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = sum(n * (n + 1) / 2 if model.causal else n * n for n in lengths)
    last = sum(lengths) if _once_a_sequence(model) else pairs
    layers = config.num_hidden_layers - 1
    return 4.0 * (layers * pairs + last) * dim * config.num_attention_heads


@torch.inference_mode()
def _once_a_sequence(model: RewardModel) -> set[nn.Linear]:
    """Linear layers that never see all rows of a batch."""
    tokens = 4 * TILE
    seen: dict[nn.Linear, int] = defaultdict(int)
    with ExitStack() as stack:
        # Every layer called by itself, so that it is seen.
        stack.enter_context(mock.patch.object(modules, "linear_suits", return_value=False))
        stack.enter_context(mock.patch.object(modules, "project", _project))
        for layer in linears(model):
            stack.enter_context(
                layer.register_forward_pre_hook(
                    lambda own, arguments: seen.update(
                        {own: max(seen[own], arguments[0].numel() // own.in_features)}
                    )
                )
            )
        model(model.pack([list(range(1, tokens + 1))]))
    return {layer for layer, rows in seen.items() if rows < tokens}


def _project(layer: nn.Linear, x: Tensor, residual: Tensor | None) -> Tensor:
    output: Tensor = layer(x)
    return output if residual is None else residual + output


def product_flops(model: RewardModel, rows: int) -> float:
    """Of :func:`matrix_products`."""
    return 2.0 * rows * sum(layer.weight.numel() for layer in linears(model))


@torch.inference_mode()
def matrix_products(model: RewardModel, rows: Sequence[int]) -> Arm:
    """Nothing but the linear layers' products, on as many rows at a time as scoring has."""
    layers = linears(model)
    inputs = {
        (count, layer.in_features): torch.randn(
            count, layer.in_features, dtype=model.dtype, device=model.device
        )
        for count in set(rows)
        for layer in layers
    }

    @torch.inference_mode()
    def arm() -> None:
        for count in rows:
            for layer in layers:
                layer(inputs[count, layer.in_features])
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return arm


def where_time_goes(model: RewardModel, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Share of packed scoring's wall time in each kind of layer.

    ``attention`` stands between linear layers and comes after the rotation; gating by a kernel is
    part of ``linear``; ``other`` is rotation, embeddings, packing and, without kernels, residuals.
    Layers are computed part by part, which takes some percent longer than one call for each.
    Timed from outside: PyTorch's profiler, which remembers every operation, made some of them many
    times slower.
    """
    spent: dict[str, float] = defaultdict(float)
    with ExitStack() as stack:
        for module in model.backbone.modules():
            if not any(module.children()) and (kind := _kind(module)):
                stack.enter_context(_timed(module, spent, kind))
        interface = AttentionInterface()
        attention = interface[IMPLEMENTATION]
        AttentionInterface.register(IMPLEMENTATION, _timed_call(attention, spent, "attention"))
        stack.callback(AttentionInterface.register, IMPLEMENTATION, attention)
        stack.enter_context(mock.patch.object(layers, "wants_all_rows", return_value=False))
        for name in ("gated_linear", "linear"):  # instead of linear layers
            timed = _timed_call(getattr(modules, name), spent, "linear")
            stack.enter_context(mock.patch.object(modules, name, timed))
        start = time.perf_counter()
        score_token_ids(model, sequences)
        total = time.perf_counter() - start
    shares = {kind: round(seconds / total, 4) for kind, seconds in spent.items()}
    return shares | {"other": round(1 - sum(shares.values()), 4)}


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "activation" if type(module).__module__.endswith("activations") else None


@contextmanager
def _timed(module: nn.Module, spent: dict[str, float], kind: str) -> Iterator[None]:
    forward = module.forward
    module.forward = _timed_call(forward, spent, kind)
    try:
        yield
    finally:
        del module.forward


def _timed_call(call: Callable[..., Any], spent: dict[str, float], kind: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            spent[kind] += time.perf_counter() - start

    return timed
