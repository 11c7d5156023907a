"""Kernels for GPUs, in Triton: where they can be had, and what they take."""

import importlib.util
import os
import shutil
from functools import cache

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@cache
def available() -> bool:
    """Whether this process has a GPU, Triton and the C compiler that Triton calls, and
    ``SUMZERO_KERNELS`` is not ``none``."""
    return (
        os.environ.get("SUMZERO_KERNELS", "").lower() != "none"
        and torch.cuda.is_available()
        and importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang"))
    )


def on_gpu(*tensors: Tensor) -> bool:
    """Whether tensors of one dtype lie where these kernels compute."""
    return all(x.is_cuda for x in tensors) and known(tensors[0].dtype, tensors[0].device)


def known(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tensors of ``dtype`` on ``device`` are computed by these kernels."""
    return device.type == "cuda" and dtype in DTYPES and available()


def aligned(x: Tensor) -> Tensor:
    """``x`` contiguous and where 16 bytes begin.

    Triton compiles a kernel anew for addresses that are not divisible by 16, and that one might add
    in another order.
    """
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
