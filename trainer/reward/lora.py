"""Low-rank adapters on the backbone, through PEFT.

The adapter layers stand inside the classifier itself, whose forward, head and names stay its own;
what is trained are they and the whole head.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_model import atomic
from reward_model.contract import Contract
from reward_model.errors import UsageError
from reward_model.model import RewardModel
from trainer.reward.config import LoraSettings
from trainer.reward.sharding import whole

WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def add_adapters(model: RewardModel, settings: LoraSettings, *, seed: int) -> Any:
    """Freeze the backbone and add an adapter to each of its linear layers; return PEFT's config.

    A is drawn by ``seed`` and B is zero, so that the model's rewards stay as they are.

    Raises:
        UsageError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError("lora: needs PEFT: pip install peft") from None
    head = next(name for name, module in model.classifier.named_modules() if module is model.head)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=_linear_layers(model),
        base_model_name_or_path=model.contract.base_model,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.classifier)
    model.head.weight.requires_grad_(True)
    # Said afterwards: PEFT would wrap the head, which is trained here as it stands.
    config.modules_to_save = [head.split(".")[0]]
    return config


def _linear_layers(model: RewardModel) -> list[str]:
    """Names of all linear layers of the backbone, as the classifier knows them."""
    return [
        name
        for name, module in model.classifier.named_modules()
        if isinstance(module, nn.Linear) and module is not model.head
    ]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, whole, by name. All ranks have to ask together."""
    return {
        name: whole(parameter).detach().contiguous().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_adapter(
    model: RewardModel,
    trained: Mapping[str, Tensor],
    config: Any,
    directory: Path,
    contract: Contract,
) -> None:
    """Write the adapter and the head as PEFT does: ``AutoPeftModel…from_pretrained`` opens it.

    The contract stands beside them, so that the service reads what training read. ``trained``:
    see :func:`trained_tensors`.
    """
    tensors = {
        _PEFT_PREFIX + name.removeprefix("classifier.").replace(".default.", "."): tensor
        for name, tensor in trained.items()
    }
    with atomic.directory(directory) as temporary:
        config.save_pretrained(temporary)
        save_file(tensors, temporary / WEIGHTS)
        model.tokenizer.save_pretrained(temporary)
        contract.write(temporary)


@torch.no_grad()
def merged_weights(model: RewardModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classifier's weights with the adapters added in, under their plain names; a copy.

    ``weights``: the classifier's state as it stands, whole.
    """
    from peft.tuners.lora.layer import LoraLayer

    merged = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in weights.items()
        if ".lora_" not in name
    }
    for name, module in model.classifier.named_modules():
        if isinstance(module, LoraLayer):
            down, up = (weights[f"{name}.lora_{side}.default.weight"] for side in "AB")
            base = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = base + (up @ down * module.scaling["default"]).to(base)
    return merged
