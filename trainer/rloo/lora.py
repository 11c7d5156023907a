"""A policy trained by low-rank adapters, through PEFT; the base, adapters off, is the reference.

The adapter layers stand inside the model itself, so its forward and its names stay its own. What
generators and users get are plain weights with the adapters added in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.rloo.config import Lora
from trainer.rloo.policy import Policy, TokenLogprobs

WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def add_adapters(model: PreTrainedModel, settings: Lora, *, base: str, seed: int) -> Any:
    """Freeze ``model`` and add an adapter to each of its linear layers but the output matrix.

    A is drawn by ``seed`` and B is zero, so that the policy starts as the base. Returns PEFT's
    configuration.

    Raises:
        UsageError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError("lora: needs PEFT: pip install peft") from None
    head = model.get_output_embeddings()
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=[
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        ],
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    return config


class BasePolicy:
    """The policy with its adapters off: a reference that costs no memory."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> TokenLogprobs:
        with adapters_off(self._policy):
            tokens: TokenLogprobs = self._policy(prompts, responses)
            return tokens


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within it ``model`` computes what its base does."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's weights with the adapters added in, under their plain names; a copy."""
    from peft.tuners.lora.layer import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            base = weights[f"{name}.weight"]
            added: Tensor = module.get_delta_weight("default")
            weights[f"{name}.weight"] = base + added.to(base)
    return weights


def save_adapter(model: PreTrainedModel, config: Any, directory: Path) -> None:
    """Write the adapters as PEFT does: ``PeftModel.from_pretrained`` opens them on the base."""
    tensors = {
        _PEFT_PREFIX + name.replace(".default.", "."): parameter.detach().contiguous().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    with atomic.directory(directory) as temporary:
        config.save_pretrained(temporary)
        save_file(tensors, temporary / WEIGHTS)
