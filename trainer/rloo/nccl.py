"""NCCL, as much of it as sending weights takes: broadcasts between processes of other programs.

``torch.distributed`` would want vLLM's workers in the learner's process group. NCCL itself needs
only an id of 128 bytes that all ranks have been told. The library is the one that torch brings.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from reward_model.errors import SumzeroError

ID_BYTES = 128
_SUM = 0
_TYPES = {torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
"""ncclDataType_t of the types that weights come in."""


class _UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * ID_BYTES)]


def _library() -> Any:
    try:
        library = ctypes.CDLL("libnccl.so.2")
    except OSError as error:
        raise SumzeroError(f"generation.transfer: NCCL is not there: {error}") from None
    pointer = ctypes.c_void_p
    library.ncclCommInitRank.argtypes = [
        ctypes.POINTER(pointer), ctypes.c_int, _UniqueId, ctypes.c_int,
    ]  # fmt: skip
    library.ncclAllReduce.argtypes = [
        pointer, pointer, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, pointer, pointer,
    ]  # fmt: skip
    library.ncclBroadcast.argtypes = [
        pointer, pointer, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, pointer, pointer,
    ]  # fmt: skip
    library.ncclCommAbort.argtypes = [pointer]
    library.ncclGetErrorString.argtypes = [ctypes.c_int]
    library.ncclGetErrorString.restype = ctypes.c_char_p
    return library


def new_unique_id() -> bytes:
    """What all ranks of a new communicator have to be told."""
    library, unique_id = _library(), _UniqueId()
    _check(library, library.ncclGetUniqueId(ctypes.byref(unique_id)))
    return bytes(ctypes.string_at(ctypes.byref(unique_id), ID_BYTES))


class NcclSender:
    """Rank 0 of a communicator whose other ranks are a vLLM server's workers.

    Opening it waits for all ranks to come. vLLM's side follows with an all-reduce of one element,
    which is answered here.
    """

    def __init__(self, unique_id: bytes, size: int, device: torch.device) -> None:
        self._library = _library()
        self._device = device
        self._communicator = ctypes.c_void_p()
        with torch.cuda.device(device):
            self._call(
                "ncclCommInitRank",
                ctypes.byref(self._communicator), size, _UniqueId.from_buffer_copy(unique_id), 0,
            )  # fmt: skip
            element = torch.zeros(1, device=device)
            self._call(
                "ncclAllReduce",
                element.data_ptr(), element.data_ptr(), 1, _TYPES[torch.float32], _SUM,
                self._communicator, self._stream(),
            )  # fmt: skip
            torch.cuda.synchronize(device)

    def send(self, tensor: Tensor) -> None:
        """Broadcast a contiguous tensor to the workers, on the current stream."""
        with torch.cuda.device(self._device):
            self._call(
                "ncclBroadcast",
                tensor.data_ptr(), tensor.data_ptr(), tensor.numel(), _TYPES[tensor.dtype], 0,
                self._communicator, self._stream(),
            )  # fmt: skip

    def wait(self) -> None:
        """Until everything sent has arrived."""
        torch.cuda.synchronize(self._device)

    def abort(self) -> None:
        """Give the communicator up, whatever is under way."""
        self._library.ncclCommAbort(self._communicator)

    def _stream(self) -> int:
        stream: int = torch.cuda.current_stream(self._device).cuda_stream
        return stream

    def _call(self, name: str, *arguments: Any) -> None:
        _check(self._library, getattr(self._library, name)(*arguments))


def _check(library: Any, result: int) -> None:
    if result != 0:
        raise SumzeroError(f"NCCL: {library.ncclGetErrorString(result).decode()}")
