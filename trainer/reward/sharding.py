"""FSDP2: parameters, gradients and optimiser states divided over the ranks.

Asked for by accelerate's configuration (``fsdp_version: 2``, see ``deploy/accelerate/``). The
layers are divided here, with PyTorch's ``fully_shard``, and not by ``Accelerator.prepare``, which
does not do it on the CPU: so what the tests run on two CPU processes is what runs on GPUs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from trainer.reward import zero
from trainer.reward.ranks import world_size


def is_configured() -> bool:
    """Whether ``accelerate launch`` was told to use FSDP."""
    return _is_set("ACCELERATE_USE_FSDP")


def is_asked_for() -> bool:
    """Whether it was, and there are ranks to divide over: false until they have met."""
    return is_configured() and world_size() > 1


def check_launcher() -> None:
    """Refuse what ``accelerate launch`` can be told of FSDP and this trainer does not do.

    Raises:
        UsageError: FSDP1 or offloading.
    """
    if not is_configured():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("accelerate: only FSDP2 is supported: set fsdp_version to 2")
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        raise UsageError("accelerate: fsdp_offload_params is not supported: set it to false")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def shard(model: RewardModel) -> None:
    """Divide every layer over all ranks, in place; a layer is gathered while it computes."""
    names = set(model.classifier._no_split_modules or ())
    for module in model.classifier.modules():
        if type(module).__name__ in names and not isinstance(module, FSDPModule):
            fully_shard(module)
    fully_shard(model)


@contextmanager
def gradients_kept_local(model: nn.Module) -> Iterator[None]:
    """Micro-batches within it leave their gradients unreduced."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided; all ranks have to ask together."""
    if zero.is_divided(tensor):
        return zero.gathered(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """``tensor``, the same on all ranks, divided as ``parameter`` is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
