"""Which device to compute on, and whether it is there."""

import torch

from reward_model.errors import UsageError


def as_device(name: str | torch.device) -> torch.device:
    """``"cuda:1"`` as a :class:`torch.device` that this process can use.

    Raises:
        UsageError: no name of a device, or a GPU that PyTorch does not see.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device: PyTorch knows no {name!r}; use cpu, cuda or cuda:1") from None
    if device.type != "cuda":
        return device
    if torch.version.cuda is None and torch.version.hip is None:
        raise UsageError(
            f"device: {name} was asked for, and this PyTorch ({torch.__version__}) is built for "
            "CPUs; install one for CUDA (docs/gpu.md), or use cpu"
        )
    count = torch.cuda.device_count()
    if not count:
        raise UsageError(
            f"device: {name} was asked for, and PyTorch sees no GPU here; look at the driver, at "
            "CUDA_VISIBLE_DEVICES and, in a container, at its device reservation, or use cpu"
        )
    if device.index is not None and device.index >= count:
        raise UsageError(f"device: {name} was asked for, and there are {count}, counted from 0")
    return device
