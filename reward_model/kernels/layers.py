"""Transformers' layers that score in one call of a kernel where all their parts are known.

Elsewhere, and in the last layer, where few rows are read, part by part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation

from reward_model.attention import IMPLEMENTATION
from reward_model.kernels.attention import LARGEST_HEAD
from reward_model.kernels.layer import Norm, Parts, layer
from reward_model.kernels.library import suits
from reward_model.kernels.linear import MULTIPLE as LINE
from reward_model.kernels.linear import KernelLinear, is_kept, linear_suits
from reward_model.kernels.modules import (
    KernelAttention,
    KernelIntermediate,
    KernelLayerNorm,
    KernelMLP,
    KernelNorm,
    KernelOutput,
)
from reward_model.reading import Reading
from reward_model.tiles import TILE


class KernelLayer(nn.Module):
    """A decoder layer; part by part, its last projections add what they are added to."""

    input_layernorm: nn.Module
    self_attn: KernelAttention
    post_attention_layernorm: nn.Module
    mlp: KernelMLP

    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if arguments or not suits(hidden_states):
            own: Tensor = super().forward(hidden_states, *arguments, **options)
            return own
        whole = wants_all_rows(options) and not hidden_states.is_cuda
        if whole and (parts := self._parts(hidden_states)) is not None:
            cosine, sine = options["position_embeddings"]
            if suits(hidden_states, cosine, sine) and cosine.shape[-1] == parts.head_dim:
                rotation = cosine.contiguous(), sine.contiguous()
                return layer(parts, hidden_states.contiguous(), options["packed"], rotation)
        x = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states=x, residual=hidden_states, **options)
        x = self.post_attention_layernorm(hidden_states)
        output: Tensor = self.mlp(x, residual=hidden_states)
        return output

    def _parts(self, x: Tensor) -> Parts | None:
        attention, mlp = self.self_attn, self.mlp
        if not (isinstance(attention, KernelAttention) and isinstance(mlp, KernelMLP)):
            return None
        of_heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        norms: list[Any] = [self.input_layernorm, self.post_attention_layernorm]
        norms += [norm for norm in of_heads if norm is not None]
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.up_proj, mlp.down_proj, mlp.gate_proj]
        if (
            not all(isinstance(norm, KernelNorm) for norm in norms)
            or not isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
            or attention.head_dim % LINE
            or not plain(x, linears, norms, [attention, mlp, mlp.act_fn], attention.head_dim)
            or mlp.gate_proj.bias is not None
            or mlp.up_proj.bias is not None
            or attention.config._attn_implementation != IMPLEMENTATION
        ):
            return None
        before, after, *more = (Norm(norm.weight, norm.variance_epsilon) for norm in norms)
        return Parts(
            *linears[:6], before, after, attention.head_dim, attention.scaling,
            mlp.gate_proj, *more, window=attention._window(),
        )  # fmt: skip


class KernelEncoderLayer(nn.Module):
    """A layer of BERT and what is built like it."""

    attention: Any
    intermediate: KernelIntermediate
    output: KernelOutput

    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        whole = wants_all_rows(options) and not (hidden_states.is_cuda or self.training)
        alone = all(argument is None for argument in arguments) and suits(hidden_states)
        if whole and alone and (parts := self._parts(hidden_states)) is not None:
            return layer(parts, hidden_states.contiguous(), options["packed"])
        own: Tensor = super().forward(hidden_states, *arguments, **options)
        return own

    def _parts(self, x: Tensor) -> Parts | None:
        attention, mixed = self.attention.self, self.attention.output
        inner, output = self.intermediate, self.output
        known = isinstance(inner, KernelIntermediate)
        if not known or not all(isinstance(part, KernelOutput) for part in (mixed, output)):
            return None
        act = inner.intermediate_act_fn
        norms: list[Any] = [mixed.LayerNorm, output.LayerNorm]
        linears = [attention.query, attention.key, attention.value]
        linears += [mixed.dense, inner.dense, output.dense]
        others = [self.attention, attention, mixed, inner, output, act]
        if (
            not isinstance(act, nn.GELU | GELUActivation)
            or not all(isinstance(norm, KernelLayerNorm) for norm in norms)
            or not plain(x, linears, norms, others, attention.attention_head_size)
            or attention.config._attn_implementation != IMPLEMENTATION
        ):
            return None
        before, after = (Norm(norm.weight, norm.eps, norm.bias) for norm in norms)
        return Parts(
            attention.query, attention.key, attention.value, mixed.dense, inner.dense, output.dense,
            before, after, attention.attention_head_size, attention.scaling,
        )  # fmt: skip


def wants_all_rows(options: Mapping[str, Any]) -> bool:
    """Whether a layer is called over a packed batch, and for every row."""
    reading: Reading | None = options.get("reading")
    return (
        options.get("packed") is not None
        and options.get("past_key_values") is None
        and options.get("encoder_hidden_states") is None
        and (reading is None or not (reading.wants_keys or reading.keys))
    )


def plain(
    x: Tensor,
    linears: Sequence[nn.Linear],
    norms: Sequence[Any],
    others: Sequence[nn.Module],
    head_dim: int,
) -> bool:
    """Whether parts are no more than their parameters, and the kernels can take all of those.

    Args:
        linears: of queries and of keys first. norms: the layer's own two first.
        others: what may have hooks.
    """
    query, key = linears[:2]
    return (
        x.shape[0] == 1
        and head_dim <= LARGEST_HEAD
        and query.out_features <= key.out_features * TILE
        and all(type(one) is KernelLinear and is_kept(one.weight) for one in linears)
        and all(one.out_features % LINE == one.in_features % LINE == 0 for one in linears)
        and linear_suits(x, query.weight)
        and suits(x, *(part.weight for part in (*linears, *norms)))
        and all(norm.weight.shape == x.shape[-1:] for norm in norms[:2])
        and not any(
            part._forward_hooks or part._forward_pre_hooks for part in (*linears, *norms, *others)
        )
    )
