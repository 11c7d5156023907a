"""Parts of transformers' layers that score with the kernels, in place of their own operations.

With gradients, in other dtypes and on other machines a part computes as before.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import GELUActivation, SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from reward_model.attention import IMPLEMENTATION
from reward_model.kernels import rows
from reward_model.kernels.library import suits
from reward_model.kernels.linear import (
    KernelLinear,
    gated_linear,
    linear,
    linear_suits,
)
from reward_model.reading import Keys, KeysTaken, Reading


class KernelNorm(nn.Module):
    """RMSNorm."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if suits(hidden_states, self.weight) and len(self.weight) % rows.MULTIPLE == 0:
            return rows.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        own: Tensor = super().forward(hidden_states)
        return own


class KernelLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm``, whose parameters it has."""

    def forward(self, input: Tensor) -> Tensor:
        weight, shape = self.weight, self.normalized_shape
        plain = len(shape) == 1 and shape[0] % rows.MULTIPLE == 0 and not input.is_cuda
        if plain and suits(input, weight):
            return rows.layer_norm(input, weight, self.bias, self.eps)
        return super().forward(input)


class KernelEmbeddings(nn.Module):
    """An encoder's: LayerNorm(words + types + positions)."""

    word_embeddings: nn.Module
    token_type_embeddings: nn.Module
    position_embeddings: nn.Module
    LayerNorm: nn.Module

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        ids = [input_ids, token_type_ids, position_ids]
        known = [one for one in ids if one is not None]
        alone = options.get("inputs_embeds") is None
        if alone and len(known) == 3 and self._suits(known):
            norm: Any = self.LayerNorm
            tables = [table.weight for table in self._tables()]
            return rows.embed(tables, known, norm.weight, norm.bias, norm.eps)
        own: Tensor = super().forward(input_ids, token_type_ids, position_ids, **options)
        return own

    def _tables(self) -> list[Any]:
        return [self.word_embeddings, self.token_type_embeddings, self.position_embeddings]

    def _suits(self, ids: list[Tensor]) -> bool:
        norm, tables = self.LayerNorm, self._tables()
        return (
            not self.training
            and isinstance(norm, KernelLayerNorm)
            and all(type(table) is nn.Embedding and table.max_norm is None for table in tables)
            and not any(one._forward_hooks or one._forward_pre_hooks for one in (norm, *tables))
            and len(norm.weight) % rows.MULTIPLE == 0
            and all(one.dtype is torch.int64 and one.is_contiguous() for one in ids)
            and all(one.shape == ids[0].shape and one.numel() for one in ids)
            and not norm.weight.is_cuda
            and all(table.weight.is_contiguous() for table in tables)
            and suits(norm.weight, *(table.weight for table in tables))
        )


class KernelMLP(nn.Module):
    """down(silu(gate(x)) · up(x)) + residual."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not suits(x) or not isinstance(self.act_fn, nn.SiLU | SiLUActivation):
            own: Tensor = super().forward(x)
            return own if residual is None else residual + own
        gate, up = self.gate_proj, self.up_proj
        if all(_is_plain(layer, x) and layer.bias is None for layer in (gate, up)):
            inner = gated_linear(x, gate.weight, up.weight)
        else:
            inner = rows.gate(gate(x), up(x))
        return project(self.down_proj, inner, residual)


class KernelAttention(nn.Module):
    """Projections, rotation and packed attention; in the last layer of what it is read for."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    config: PreTrainedConfig
    head_dim: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        residual: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if past_key_values is not None or not self._suits(hidden_states, position_embeddings[0]):
            own: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **options
            )
            return own if residual is None else (residual + own[0], own[1])
        reading: Reading | None = options.get("reading")
        if reading is not None and reading.keys is not None:
            keys = reading.keys
        else:
            key = self._heads(self.k_proj, hidden_states)
            key = rows.rotate(self._norm("k_norm", key), *position_embeddings)
            value = self._heads(self.v_proj, hidden_states)
            keys = Keys(key.transpose(1, 2), value.transpose(1, 2))
            if reading is not None and reading.wants_keys:
                raise KeysTaken(keys)
        query = self._heads(self.q_proj, hidden_states)
        query = rows.rotate(self._norm("q_norm", query), *position_embeddings)
        output, _ = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION](
            self, query.transpose(1, 2), keys.key, keys.value, None,
            scaling=self.scaling, sliding_window=self._window(), **options,
        )  # fmt: skip
        return project(self.o_proj, output.flatten(2), residual), None

    def _suits(self, hidden_states: Tensor, cosine: Tensor) -> bool:
        whole = cosine.shape[-1] == self.head_dim and self.head_dim % (2 * rows.MULTIPLE) == 0
        own = self.config._attn_implementation != IMPLEMENTATION
        return whole and not own and suits(hidden_states, cosine)

    def _window(self) -> int | None:
        """Mistral's layers all have the configured one, the others one of their own or none."""
        owner = self.config if type(self).__name__.startswith("Mistral") else self
        return getattr(owner, "sliding_window", None)

    def _heads(self, project: nn.Linear, hidden_states: Tensor) -> Tensor:
        x: Tensor = project(hidden_states)
        return x.view(*x.shape[:-1], -1, self.head_dim)

    def _norm(self, name: str, heads: Tensor) -> Tensor:
        """Qwen3 normalises queries and keys, head by head."""
        norm = getattr(self, name, None)
        return heads if norm is None else norm(heads)


class KernelSelfAttention(nn.Module):
    """An encoder's; for the last layer's keys it computes no queries."""

    key: nn.Linear
    value: nn.Linear
    attention_head_size: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        reading: Reading | None = options.get("reading")
        if reading is not None and reading.wants_keys and past_key_values is None:
            key, value = (self._heads(one, hidden_states) for one in (self.key, self.value))
            raise KeysTaken(Keys(key, value))
        own: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, attention_mask, past_key_values, **options
        )
        return own

    def _heads(self, project: nn.Linear, hidden_states: Tensor) -> Tensor:
        x: Tensor = project(hidden_states)
        return x.view(*x.shape[:-1], -1, self.attention_head_size).transpose(1, 2)


class KernelIntermediate(nn.Module):
    """gelu(dense(x)), the first half of an encoder's feed-forward part."""

    dense: nn.Linear
    intermediate_act_fn: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        layer = self.dense
        plain = suits(hidden_states) and _is_plain(layer, hidden_states)
        if plain and isinstance(self.intermediate_act_fn, nn.GELU | GELUActivation):
            return linear(hidden_states, layer.weight, layer.bias, gelu=True)
        own: Tensor = super().forward(hidden_states)
        return own


class KernelOutput(nn.Module):
    """LayerNorm(dense(x) + residual), the end of an encoder's attention and feed-forward parts."""

    dense: nn.Linear
    LayerNorm: nn.Module

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        if self.training or not suits(hidden_states, input_tensor):
            own: Tensor = super().forward(hidden_states, input_tensor)
            return own
        output: Tensor = self.LayerNorm(project(self.dense, hidden_states, input_tensor))
        return output


def project(layer: nn.Linear, x: Tensor, residual: Tensor | None) -> Tensor:
    """layer(x) + residual, on a GPU written over it."""
    if _is_plain(layer, x):
        return linear(x, layer.weight, layer.bias, residual)
    if residual is not None and type(layer) is KernelLinear and layer.bias is None and x.is_cuda:
        return _add_product(residual, x, layer.weight)
    output: Tensor = layer(x)
    return output if residual is None else residual + output


def _add_product(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """residual + x · weightᵀ, written over ``residual``; by PyTorch, in one pass."""
    outer, inner = weight.shape
    residual = residual.contiguous()
    residual.view(-1, outer).addmm_(x.reshape(-1, inner), weight.t())
    return residual


def _is_plain(layer: nn.Linear, x: Tensor) -> bool:
    """Whether a layer is nothing but a product that the kernels compute."""
    return type(layer) is KernelLinear and linear_suits(x, layer.weight)
