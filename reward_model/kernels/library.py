"""The compiled kernels, and which of them this machine can use."""

import ctypes
import importlib.util
import os
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor

from reward_model.kernels import gpu
from reward_model.processor import made_by_intel

_INTERFACE = 5
_AVX2 = ("avx2", "fma3")
_AVX512 = (*_AVX2, "avx512_f", "avx512_bw", "avx512_dq", "avx512_vl")


class Isa(IntEnum):
    """What the kernels multiply with, worse to better."""

    NONE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_BF16 = 3
    AMX = 4


_REGISTERS = {Isa.AVX2: "avx2", Isa.AVX512: "avx512"}
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


@cache
def library(best: Isa) -> ctypes.CDLL | None:
    """The shared library beside this file for a level; None where it could not be built, or not
    anew."""
    registers = _REGISTERS.get(best, "avx512_bf16")
    spec = importlib.util.find_spec(f"reward_model.kernels._{registers}")
    if spec is None or spec.origin is None:
        return None
    try:
        # torch has loaded its OpenMP by now, so both use the same threads.
        loaded = ctypes.CDLL(spec.origin, mode=os.RTLD_NOW)
        return loaded if loaded.interface_version() == _INTERFACE else None
    except (OSError, AttributeError):
        return None


@cache
def isa() -> Isa:
    """What kernels multiply with: ``SUMZERO_KERNELS``, a name in small letters, where this machine
    has that, or the fastest.

    Intel's processors multiply bfloat16 without matrix tiles at half the rate of float32 (a Xeon of
    2.9 GHz: 89 against 185 GFLOP/s a core), so it is widened there.
    """
    wanted = os.environ.get("SUMZERO_KERNELS", "").upper()
    if wanted in Isa.__members__:
        return min(present(), Isa[wanted])
    slow = present() is Isa.AVX512_BF16 and made_by_intel()
    return Isa.AVX512 if slow else present()


@cache
def present() -> Isa:
    """The best that this machine has."""
    has = torch.cpu.get_capabilities()
    if not all(has.get(name) for name in _AVX2) or library(Isa.AVX2) is None:
        return Isa.NONE
    if not all(has.get(name) for name in _AVX512) or library(Isa.AVX512) is None:
        return Isa.AVX2
    loaded = library(Isa.AVX512_BF16)
    if loaded is None or not has.get("avx512_bf16"):
        return Isa.AVX512
    amx = has.get("amx_bf16") and has.get("amx_tile") and loaded.ask_for_amx()
    return Isa.AMX if amx else Isa.AVX512_BF16


def level(dtype: torch.dtype, device: torch.device) -> Isa:
    """What kernels multiply tensors of ``dtype`` on ``device`` with."""
    return isa() if device.type == "cpu" and dtype in _SUFFIX else Isa.NONE


def used(dtype: torch.dtype, device: torch.device) -> str:
    """What kernels multiply with, in small letters; ``triton`` on a GPU, ``none`` without any."""
    return "triton" if gpu.known(dtype, device) else level(dtype, device).name.lower()


def suits(*tensors: Tensor) -> bool:
    """Whether kernels can take these: one dtype that they know, no gradient, a device that has
    them."""
    first = tensors[0]
    return (
        all(x.dtype is first.dtype and x.device == first.device for x in tensors)
        and not torch.is_grad_enabled()
        and (level(first.dtype, first.device) is not Isa.NONE or gpu.on_gpu(first))
        and not torch.is_autocast_enabled(first.device.type)
        and not torch.compiler.is_compiling()
    )


def kernel(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """A function of the best library that this machine has for a dtype.

    Raises:
        RuntimeError: there is none.
    """
    best = level(dtype, torch.device("cpu"))
    if best is Isa.NONE or (loaded := library(best)) is None:
        raise RuntimeError("the kernels were not built: is there a C compiler?")
    function: Callable[..., Any] = getattr(loaded, f"{name}_{_SUFFIX[dtype]}")
    return function


def call(name: str, first: Tensor, *others: Tensor | float | None) -> None:
    """Call a kernel for the dtype of ``first``: tensors by address, None as a null pointer."""
    kernel(name, first.dtype)(*(_as_c(argument) for argument in (first, *others)))


def _as_c(argument: Tensor | float | None) -> object:
    if argument is None:
        return None
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_long(argument)
