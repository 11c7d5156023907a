"""The scalar head of a sequence classifier: which hidden state enters its last linear layer.

r = W_pᵀ h + b. For decoders h is the last hidden state after the final norm; for encoders it is
what their own head hands to its last linear layer. The product is taken in float32 row by row, in
one fixed order, so that it does not depend on how many rows there are.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_model.errors import CheckpointError
from reward_model.packing import ROW_MULTIPLE, PackedBatch

_LINEAR_NAMES = ("score", "classifier")


def find_last_linear(model: PreTrainedModel) -> nn.Linear | None:
    """W_p, or None where no layer has one of the names that transformers gives it."""
    for name in _LINEAR_NAMES:
        layer = getattr(model, name, None)
        layer = getattr(layer, "out_proj", layer)
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            return layer
    return None


def last_linear(model: PreTrainedModel) -> nn.Linear:
    """W_p of a sequence classifier with one label.

    Raises:
        CheckpointError: the architecture's head is not one that is understood here.
    """
    if (layer := find_last_linear(model)) is not None:
        return layer
    raise CheckpointError(
        f"{type(model).__name__}: no linear score head named {' or '.join(_LINEAR_NAMES)}"
    )


def transform(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """What stands between the pooled hidden state [N, H] and the last linear layer, if anything."""
    backbone = getattr(model, model.base_model_prefix)
    for owner in (model, backbone):
        pooler = getattr(owner, "pooler", None)
        if isinstance(pooler, nn.Linear):  # ALBERT keeps its activation beside it
            return lambda pooled_NH: backbone.pooler_activation(pooler(pooled_NH))
        if pooler is not None:  # BERT and DeBERTa: a module that reads the first position
            return lambda pooled_NH: pooler(pooled_NH[:, None])
    if isinstance(head := getattr(model, "head", None), nn.Module):  # ModernBERT
        return head
    classifier = getattr(model, "classifier", None)
    if (dense := getattr(classifier, "dense", None)) is not None:  # RoBERTa, ELECTRA
        activation: Callable[[Tensor], Tensor] = getattr(classifier, "activation", torch.tanh)
        return lambda pooled_NH: activation(dense(pooled_NH))
    if (before := getattr(model, "pre_classifier", None)) is not None:  # DistilBERT
        return lambda pooled_NH: torch.relu(before(pooled_NH))
    return None


def pooled_rows(packed: PackedBatch, pooling: str, pad_id: int | None) -> Tensor | None:
    """The row that each score is read from, [N]; None where it is read from all of them."""
    if pooling == "cls":
        return packed.first_N
    if pooling == "last":
        return packed.last_N
    if pooling == "mean":
        return None
    return torch.stack([_last_non_pad(packed, n, pad_id) for n in range(len(packed))])


def mean_pool(hidden_TH: Tensor, packed: PackedBatch) -> Tensor:
    """The mean of each sequence's hidden states, [N, H]."""
    return torch.stack([hidden_TH[packed.rows(n)].mean(0) for n in range(len(packed))])


def _last_non_pad(packed: PackedBatch, n: int, pad_id: int | None) -> Tensor:
    rows = packed.rows(n)
    places = torch.nonzero(packed.token_ids_T[rows].ne(-1 if pad_id is None else pad_id))
    return rows[places[-1, 0] if len(places) else 0]


def apply_transform(function: Callable[[Tensor], Tensor], pooled_NH: Tensor) -> Tensor:
    """``function`` on as many rows as kernels need to be row-independent (see ``ROW_MULTIPLE``)."""
    rows = len(pooled_NH)
    filler = pooled_NH[-1:].expand(-rows % ROW_MULTIPLE, -1)
    return function(torch.cat([pooled_NH, filler]))[:rows]


def rewards(hidden_NH: Tensor, linear: nn.Linear) -> Tensor:
    """W_pᵀ h + b in float32 (float64 stays), [N]."""
    return apply_transform(lambda rows_NH: _rewards(rows_NH, linear), hidden_NH)


def _rewards(hidden_NH: Tensor, linear: nn.Linear) -> Tensor:
    dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        reward_N = (hidden_NH.to(dtype) * linear.weight[0].to(dtype)).sum(-1)
        return reward_N if linear.bias is None else reward_N + linear.bias[0].to(dtype)
