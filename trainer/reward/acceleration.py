"""Options that change how a model is computed, and not what."""

import torch

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from trainer.reward.config import ComputeSettings

COMPILED = ("mlp", "intermediate", "input_layernorm", "post_attention_layernorm")
"""Parts of a layer that torch.compile is given; attention has kernels of its own."""


def apply(model: RewardModel, compute: ComputeSettings) -> None:
    """Set ``model`` up as ``compute`` says, in place.

    Raises:
        UsageError: an option that this machine or this architecture does not have.
    """
    if compute.activation_checkpointing:
        if not model.classifier.supports_gradient_checkpointing:
            name = type(model.classifier).__name__
            raise UsageError(f"compute.activation_checkpointing: {name} cannot do it")
        model.classifier.gradient_checkpointing_enable({"use_reentrant": False})
    if compute.liger:
        _apply_liger(model)
    if compute.compile:
        _compile(model)
    if torch.cuda.is_available():
        # On Hopper PyTorch prefers cuDNN, which makes a plan for every length: 30 ms each, and
        # training attends to one segment after another.
        torch.backends.cuda.enable_cudnn_sdp(False)


def _apply_liger(model: RewardModel) -> None:
    if not torch.cuda.is_available():
        raise UsageError("compute.liger: Liger's kernels need a CUDA device: set it to false")
    from transformers.integrations.liger import apply_liger_kernel

    try:
        apply_liger_kernel(model.classifier, None)
    except ImportError as error:
        raise UsageError(f"compute.liger: pip install liger-kernel ({error})") from None


def _compile(model: RewardModel) -> None:
    parts = [
        module
        for name, module in model.backbone.named_modules()
        if name.rsplit(".", 1)[-1] in COMPILED
    ]
    if not parts:
        raise UsageError(f"compute.compile: nothing to compile in {type(model.backbone).__name__}")
    for module in parts:
        module.compile(dynamic=True)  # the number of rows changes with every batch
