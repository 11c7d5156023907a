"""LoRA adapters as PEFT writes them, for scoring: read, checked, and put beside the base's weights.

An adapter directory holds ``adapter_config.json`` and ``adapter_model.safetensors``: A and B of
every adapted linear layer, and whole tensors of what was trained besides (``modules_to_save``: the
score head). How PEFT computes is followed: y = W x + b + s · B(A x), the added part in float32.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from reward_model.contract import ADAPTER_CONFIG
from reward_model.errors import CheckpointError
from reward_model.kernels.linear import KernelLinear

WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to draw A and B that leave W as it is; the others (pissa, olora, …) rewrite W as well."""
_VARIANTS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)


class LoraLinear(KernelLinear):
    """A linear layer with an adapter. W and b are the very parameters of the layer it replaces."""

    def __init__(self, base: nn.Linear, a_RI: Tensor, b_OR: Tensor, scaling: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Parameter(a_RI.float(), requires_grad=False)
        self.lora_B = nn.Parameter(b_OR.float(), requires_grad=False)
        self.scaling = scaling

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        added = linear(linear(input.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return (output + added * self.scaling).to(output.dtype)


@dataclass(frozen=True, eq=False)
class Adapter:
    """``pairs``: A [R, I] and B [O, R] by the layer's name; ``whole``: tensors by theirs."""

    path: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> "Adapter":
        """Read an adapter directory.

        Raises:
            CheckpointError: not LoRA, a variant of it that is not understood here, no safetensors,
                or matrices whose rank is not the configured one.
        """
        config = _read_config(path / ADAPTER_CONFIG)
        _refuse_variants(path, config)
        pairs: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, Tensor] = {}
        for key, tensor in _read_weights(path / WEIGHTS).items():
            name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
            found = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
            if found:
                pairs.setdefault(found[1], {})[found[2]] = tensor
            elif ".lora_" in name:
                raise CheckpointError(
                    f"{path / WEIGHTS}: {key} is not LoRA of a linear layer; merge the adapter "
                    "with PEFT's merge_and_unload and serve the merged model"
                )
            else:
                whole[name] = tensor
        for name, pair in pairs.items():
            _check_ranks(path, name, pair, _of_layer(config, "rank_pattern", "r", name))
        return cls(path, config, {name: (p["A"], p["B"]) for name, p in pairs.items()}, whole)

    @property
    def base_name(self) -> str:
        """The path or hub name of the base, as the adapter gives it; may be empty."""
        return self.config.get("base_model_name_or_path") or ""

    def scaling(self, layer: str) -> float:
        """s: α/r, or α/√r where rank-stabilised."""
        rank = len(self.pairs[layer][0])
        alpha = float(_of_layer(self.config, "alpha_pattern", "lora_alpha", layer))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def put_into(self, model: PreTrainedModel) -> None:
        """Give ``model`` this adapter. Its own parameters stay as they are, shared or not.

        Raises:
            CheckpointError: the adapter belongs to another architecture or size.
        """
        for name in self.pairs:
            self._add_pair(model, name)
        for name, tensor in self.whole.items():
            self._replace(model, name, tensor)

    def _add_pair(self, model: PreTrainedModel, name: str) -> None:
        a_RI, b_OR = self.pairs[name]
        parent, _, child = name.rpartition(".")
        layer = self._module(model, name)
        if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
            raise CheckpointError(
                f"{self.path}: {name} of the base is {type(layer).__name__}, and adapters are put "
                "on linear layers only; merge it with PEFT's merge_and_unload"
            )
        if (a_RI.shape[1], b_OR.shape[0]) != (layer.in_features, layer.out_features):
            raise CheckpointError(
                f"{self.path}: {name} was trained for {a_RI.shape[1]} inputs and {b_OR.shape[0]} "
                f"outputs, the base has {layer.in_features} and {layer.out_features}: another base?"
            )
        adapted = LoraLinear(layer, a_RI, b_OR, self.scaling(name))
        setattr(self._module(model, parent), child, adapted)

    def _replace(self, model: PreTrainedModel, name: str, tensor: Tensor) -> None:
        owner_name, _, child = name.rpartition(".")
        owner = self._module(model, owner_name)
        old = getattr(owner, child, None)
        if not isinstance(old, Tensor):
            raise CheckpointError(f"{self.path}: the base has no tensor {name}: another base?")
        rows_may_differ = isinstance(owner, nn.Embedding)  # a tokenizer that was added to
        if old.shape[rows_may_differ:] != tensor.shape[rows_may_differ:]:
            raise CheckpointError(
                f"{self.path}: {name} has shape {list(tensor.shape)}, in the base "
                f"{list(old.shape)}: another base?"
            )
        setattr(owner, child, nn.Parameter(tensor.to(old.dtype), requires_grad=False))
        if isinstance(owner, nn.Embedding):
            owner.num_embeddings = len(tensor)

    def _module(self, model: PreTrainedModel, name: str) -> nn.Module:
        try:
            module: nn.Module = model.get_submodule(name)
            return module
        except AttributeError:
            raise CheckpointError(
                f"{self.path}: the base has no layer {name}: another base?"
            ) from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not an adapter configuration")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; other weight formats are not read")
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _refuse_variants(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG}: peft_type {config.get('peft_type')}: only LORA adapters are "
            "served; merge others with PEFT's merge_and_unload"
        )
    used = [name for name in _VARIANTS if config.get(name)]
    if config.get("init_lora_weights", True) not in _PLAIN_INITS:
        used.append(f"init_lora_weights {config['init_lora_weights']}")
    if used:
        raise CheckpointError(
            f"{path / ADAPTER_CONFIG}: {', '.join(used)} is not plain LoRA; merge the adapter with "
            "PEFT's merge_and_unload and serve the merged model"
        )


def _check_ranks(path: Path, name: str, pair: Mapping[str, Tensor], rank: int) -> None:
    if len(pair) != 2:
        raise CheckpointError(f"{path / WEIGHTS}: {name} has only one of lora_A and lora_B")
    ranks = pair["A"].shape[0], pair["B"].shape[1]
    if ranks != (rank, rank):
        raise CheckpointError(
            f"{path}: {name} has rank {ranks[0]} in lora_A and {ranks[1]} in lora_B, "
            f"{ADAPTER_CONFIG} says {rank}; configuration and weights are not of one run"
        )


def _of_layer(config: Mapping[str, Any], patterns: str, default: str, layer: str) -> Any:
    """A setting of one layer: PEFT's patterns match whole names or what follows a dot."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return config.get(default, 8)
