"""A transformers backbone run on a packed batch: the one forward path of the project.

A backbone whose layers would mix the sequences of a batch (see :func:`packing_obstacle`) gets one
sequence per forward instead, by its own attention: slower, and exact all the same.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_model.attention import IMPLEMENTATION
from reward_model.packing import PackedBatch
from reward_model.reading import Reading, read_rows_in_last_layer


def packing_obstacle(model: PreTrainedModel) -> str | None:
    """Why a model cannot work on packed batches; None where nothing is known to stand in the way.

    Attention must go through transformers' attention interface, and no layer may look at the whole
    batch: the experts of a mixture get as many rows as the batch routes to them, and their matrix
    products change with that number; longrope picks its frequencies by the longest position.
    """
    if not getattr(model, "_supports_attention_backend", False) or is_causal(model) is None:
        return f"the attention of {model.config.model_type} cannot be replaced"
    if any(
        getattr(model.config, name, None)
        for name in ("num_experts", "num_local_experts", "n_routed_experts")
    ):
        return "the experts of a mixture compute whatever rows the batch brings them"
    if any(parameters.get("rope_type") == "longrope" for parameters in _rope_parameters(model)):
        return "longrope chooses its frequencies by the longest sequence of the batch"
    return None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let every attention layer of ``model`` work on packed batches, and on nothing else."""
    model.set_attn_implementation(IMPLEMENTATION)
    read_rows_in_last_layer(model)


def use_own_attention(model: PreTrainedModel) -> None:
    """Back to transformers' attention, for one sequence per forward."""
    if getattr(model, "_supports_attention_backend", False):
        # SDPA leaves Gemma-2's soft cap out.
        capped = getattr(model.config, "attn_logit_softcapping", None)
        model.set_attn_implementation("eager" if capped else "sdpa")


def is_causal(model: nn.Module) -> bool | None:
    """Whether a token sees only what precedes it, by the attention layers' own word.

    None where they say nothing. Looked up once: a forward asks, and there are many layers.
    """
    if model not in _CAUSAL:
        _CAUSAL[model] = _told_causal(model)
    return _CAUSAL[model]


_CAUSAL: WeakKeyDictionary[nn.Module, bool | None] = WeakKeyDictionary()


def _told_causal(model: nn.Module) -> bool | None:
    told = {
        bool(module.is_causal)
        for module in model.modules()
        if isinstance(getattr(module, "is_causal", None), bool)
    }
    return told == {True} if told else None


def packed_hidden_states(
    backbone: nn.Module, packed: PackedBatch, rows_N: Tensor | None = None
) -> Tensor:
    """Hidden states after the backbone's final norm, [T, H], or those of ``rows_N``, [N, H].

    Where few rows are wanted the last layer computes no others, on a CPU.

    ``backbone`` is a headless transformers model; after :func:`use_packed_attention` all rows are
    computed together, otherwise one sequence after another (``packed`` shares nothing then).
    For a policy the log-probability of token i + 1 of sequence n is read at row
    ``packed.rows(n)[i]``.
    """
    if getattr(backbone.config, "_attn_implementation", None) == IMPLEMENTATION:
        inputs = packed.token_ids_T, packed.position_ids_T
        if rows_N is None:
            return _hidden_states(backbone, *inputs, {"packed": packed})
        if packed.device.type != "cpu":
            return _hidden_states(backbone, *inputs, {"packed": packed})[rows_N]
        reading = Reading(rows_N)
        hidden = _hidden_states(backbone, *inputs, {"packed": packed, "reading": reading})
        return hidden[: len(rows_N)] if reading.done else hidden[rows_N]
    hidden_TH = _one_after_another(backbone, packed)
    return hidden_TH if rows_N is None else hidden_TH[rows_N]


def _one_after_another(backbone: nn.Module, packed: PackedBatch) -> Tensor:
    pieces: list[Tensor] = []
    done = 0
    for n in range(len(packed)):
        rows_L = packed.rows(n)
        new = int((rows_L >= done).sum())  # rows stand in the order of their first use
        if new:
            token_ids_L, position_ids_L = packed.token_ids_T[rows_L], packed.position_ids_T[rows_L]
            pieces.append(_hidden_states(backbone, token_ids_L, position_ids_L, {})[-new:])
            done += new
    return torch.cat([*pieces, pieces[0].new_zeros(packed.filler, pieces[0].shape[1])])


def position_offset(backbone: nn.Module) -> int:
    """Where positions start: RoBERTa's embedding keeps the rows up to the pad id for itself."""
    embeddings = getattr(backbone, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def _hidden_states(
    backbone: nn.Module, token_ids_T: Tensor, position_ids_T: Tensor, more: Mapping[str, Any]
) -> Tensor:
    inputs: dict[str, Any] = {"input_ids": token_ids_T[None], **more}
    if more or is_causal(backbone) is not None:
        inputs["position_ids"] = position_ids_T[None] + position_offset(backbone)
    if getattr(backbone.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if is_causal(backbone):
        inputs["use_cache"] = False
    hidden: Tensor = backbone(**inputs).last_hidden_state[0]
    return hidden


def _rope_parameters(model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
    """RoPE's parameters, one set or one per kind of layer."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (part for part in parameters.values() if isinstance(part, Mapping))
