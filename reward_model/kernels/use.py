"""Let a model of transformers score with the kernels.

A layer keeps its parameters and its class, a subclass of which it becomes.
"""

from torch import nn

from reward_model.kernels import gpu
from reward_model.kernels.layers import KernelEncoderLayer, KernelLayer
from reward_model.kernels.library import Isa, isa
from reward_model.kernels.linear import KernelLinear, keep_packed
from reward_model.kernels.modules import (
    KernelAttention,
    KernelEmbeddings,
    KernelIntermediate,
    KernelLayerNorm,
    KernelMLP,
    KernelNorm,
    KernelOutput,
    KernelSelfAttention,
)
from reward_model.linear import Linear
from reward_model.row_cuts import CutLinear

_DECODERS = ("Llama", "Mistral", "Qwen2", "Qwen3")
_ENCODERS = ("Bert", "Roberta", "XLMRoberta", "Electra")
"""Architectures of transformers whose layers differ in nothing that matters here."""
_LAYERS: dict[type, tuple[str, ...]] = {
    KernelNorm: tuple(f"{name}RMSNorm" for name in _DECODERS),
    KernelMLP: tuple(f"{name}MLP" for name in _DECODERS),
    KernelAttention: tuple(f"{name}Attention" for name in _DECODERS),
    KernelLayer: tuple(f"{name}DecoderLayer" for name in _DECODERS),
    KernelEmbeddings: tuple(f"{name}Embeddings" for name in _ENCODERS),
    KernelSelfAttention: tuple(f"{name}SelfAttention" for name in _ENCODERS),
    KernelIntermediate: tuple(f"{name}Intermediate" for name in _ENCODERS),
    KernelOutput: tuple(f"{name}{part}" for name in _ENCODERS for part in ("SelfOutput", "Output")),
    KernelEncoderLayer: tuple(f"{name}Layer" for name in _ENCODERS),
}


def use_kernels(model: nn.Module) -> None:
    """Let every layer of ``model`` that kernels exist for use them; in place."""
    if isa() is Isa.NONE and not gpu.available():
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
    if own in (nn.Linear, Linear, CutLinear):
        return KernelLinear
    if own is nn.LayerNorm:
        return KernelLayerNorm
    if own.__module__.startswith("transformers.models."):
        for layer, names in _LAYERS.items():
            if own.__name__ in names:
                return type(own.__name__, (layer, own), {"__module__": own.__module__})
    return own
