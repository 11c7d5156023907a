"""Layers of transformers that score with the kernels, in place of their own operations.

A layer keeps its parameters and its class, of which it becomes a subclass; with gradients, in other
dtypes and on other machines it computes as before.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from reward_model.attention import IMPLEMENTATION
from reward_model.kernels import rows
from reward_model.kernels.library import Isa, isa, suits
from reward_model.kernels.linear import KernelLinear, gated_linear, keep_packed, linear_suits
from reward_model.reading import Keys, KeysTaken, Reading
from reward_model.row_cuts import CutLinear

_ALIKE = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""Architectures of transformers whose layers differ in nothing that matters here."""


def use_kernels(model: nn.Module) -> None:
    """Let every layer of ``model`` that kernels exist for use them; in place."""
    if isa() is Isa.NONE:
        return
    classes: dict[type, type] = {}
    for module in model.modules():
        own = type(module)
        if own not in classes:
            classes[own] = _with_kernels(own)
        module.__class__ = classes[own]
    keep_packed(model)


def _with_kernels(own: type) -> type:
    """A subclass of a layer's class, of the same name, or the class itself."""
    if own in (nn.Linear, CutLinear):
        return KernelLinear
    if own.__module__.startswith("transformers.models."):
        for layer in (KernelNorm, KernelMLP, KernelAttention):
            if own.__name__ in (name + layer.NAME for name in _ALIKE):
                return type(own.__name__, (layer, own), {"__module__": own.__module__})
    return own


class KernelNorm(nn.Module):
    """RMSNorm."""

    NAME = "RMSNorm"
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        if suits(hidden_states, self.weight) and len(self.weight) % rows.MULTIPLE == 0:
            return rows.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        own: Tensor = super().forward(hidden_states)
        return own


class KernelMLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    NAME = "MLP"
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if not suits(x) or not isinstance(self.act_fn, nn.SiLU | SiLUActivation):
            own: Tensor = super().forward(x)
            return own
        gate, up = self.gate_proj, self.up_proj
        if all(_is_plain(layer) and linear_suits(x, layer.weight) for layer in (gate, up)):
            inner = gated_linear(x, gate.weight, up.weight)
        else:
            inner = rows.gate(gate(x), up(x))
        output: Tensor = self.down_proj(inner)
        return output


class KernelAttention(nn.Module):
    """Projections, rotation and packed attention; in the last layer of what it is read for."""

    NAME = "Attention"
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
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if past_key_values is not None or not self._suits(hidden_states, position_embeddings[0]):
            own: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **options
            )
            return own
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
        return self.o_proj(output.flatten(2)), None

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


def _is_plain(layer: nn.Linear) -> bool:
    return type(layer) is KernelLinear and layer.bias is None
