"""A transformers backbone run on a packed batch: the one forward path of the project."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_model.attention import IMPLEMENTATION
from reward_model.packing import PackedBatch


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let every attention layer of ``model`` work on packed batches, and on nothing else."""
    model.set_attn_implementation(IMPLEMENTATION)


def packed_hidden_states(backbone: nn.Module, packed: PackedBatch) -> Tensor:
    """Hidden states after the backbone's final norm, [T, H].

    ``backbone`` is a headless transformers model after :func:`use_packed_attention`. For a policy
    the log-probability of token i + 1 of sequence n is read at row ``packed.rows(n)[i]``.
    """
    inputs: dict[str, Tensor] = {
        "input_ids": packed.token_ids_T[None],
        "position_ids": packed.position_ids_T[None],
    }
    if getattr(backbone.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    output = backbone(**inputs, use_cache=False, packed=packed)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden
