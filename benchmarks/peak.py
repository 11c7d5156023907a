"""How much of the machine's matrix-product rate scoring reaches, and where the rest goes.

FLOPs are those of the function computed: two per weight of a linear layer and token, four per head
dimension and visible (query, key) pair. Masked pairs, fillers and copies count as time only.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.interleaved import Arm
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids


def linears(model: RewardModel) -> list[nn.Linear]:
    """The linear layers that every token passes; the score head sees one token of a sequence."""
    return [m for m in model.backbone.modules() if isinstance(m, nn.Linear)]


def linear_flops(model: RewardModel, tokens: int) -> float:
    return 2.0 * tokens * sum(layer.weight.numel() for layer in linears(model))


def attention_flops(model: RewardModel, lengths: Sequence[int]) -> float:
    """Scores and weighted values of every query, over the keys it sees."""
    config = model.classifier.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = sum(n * (n + 1) / 2 if model.causal else n * n for n in lengths)
    return 4.0 * pairs * dim * config.num_attention_heads * config.num_hidden_layers


@torch.inference_mode()
def matrix_products(model: RewardModel, rows: Sequence[int]) -> Arm:
    """Nothing but the linear layers' products, on as many rows at a time as scoring has."""
    layers = linears(model)
    inputs = {
        (count, layer.in_features): torch.randn(count, layer.in_features, dtype=model.dtype)
        for count in set(rows)
        for layer in layers
    }

    @torch.inference_mode()
    def arm() -> None:
        for count in rows:
            for layer in layers:
                layer(inputs[count, layer.in_features])

    return arm


def where_time_goes(model: RewardModel, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
    """Share of each operation's own time in packed scoring, the ten largest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        score_token_ids(model, sequences)
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(own.values())
    largest = sorted(own, key=lambda key: own[key], reverse=True)[:10]
    return {key: round(own[key] / total, 4) for key in largest}
