"""What makes a transformers model decode faster: grouped attention, and a cache with room to grow.

Query heads that share a key head stand as rows of one small matrix product, so that no key or value
is copied for each of them; and a token's keys and values are written behind the last ones instead
of copying all of them into a tensor that is one longer. Results are those of ``sdpa`` and
``DynamicCache``, up to rounding.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "grouped_decoding"
ROOM = 32
"""Tokens that a layer's cache can take before it is copied."""


def decode_grouped(model: PreTrainedModel) -> None:
    """Let ``model``'s steps of one token attend by groups, if it attends by ``sdpa`` now."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)


class RoomyCache(DynamicCache):  # type: ignore[misc]
    """A ``DynamicCache`` whose full-attention layers are ``RoomyLayer``."""

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [RoomyLayer() if type(one) is DynamicLayer else one for one in self.layers]


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values [B, H, L, D] are the front of buffers with room for ``ROOM`` tokens more."""

    keys: Tensor
    values: Tensor
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or not self._stands_in(self._buffers[0], end):
            self._buffers = (
                _roomy(self.keys, key_states, start), _roomy(self.values, value_states, start)
            )  # fmt: skip
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def _stands_in(self, buffer: Tensor, end: int) -> bool:
        """Whether the keys are the buffer's front, no selection of them, and ``end`` fits it."""
        front = self.keys.data_ptr() == buffer.data_ptr() and len(self.keys) == len(buffer)
        return front and end <= buffer.shape[-2]


def _roomy(past: Tensor, new: Tensor, length: int) -> Tensor:
    batch, heads, more, width = new.shape
    buffer = new.new_empty(batch, heads, length + more + ROOM, width)
    if length:
        buffer[:, :, :length] = past
    return buffer


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As ``sdpa_attention_forward``: query [B, H, L, D], key and value [B, K, S, D]."""
    batch, heads, length, width = query.shape
    shared = attention_mask is None or attention_mask.shape[1] == 1
    if length > 1 or not shared or kwargs.get("position_bias") is not None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return attended
    # One query token sees the same keys in every head, so that heads may stand where queries do.
    grouped = query.reshape(batch, key.shape[1], -1, width)
    output = scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return output.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
