"""Memory for what kernels write: apart from the heap, and used again and again.

Every layer takes and gives back the same tens of megabytes, in sizes that change from batch to
batch. Taken from the heap, each leaves a hole which something small soon makes too small for the
next: under load a server had 130 MiB of them. Given back to the system, memory returns as new
pages, a fault each.
"""

import contextlib
import mmap
import weakref
from math import prod

import torch
from torch import Tensor

LEAST_BYTES = 1 << 18
"""Less comes from the heap."""

_free: list[mmap.mmap] = []


def empty(like: Tensor, *shape: int) -> Tensor:
    """Like ``like.new_empty(*shape)``; what it stands in is used again once nothing refers to it.

    Raises:
        MemoryError: the system gives no more.
    """
    size = prod(shape) * like.itemsize
    if like.device.type != "cpu" or size < LEAST_BYTES:
        return like.new_empty(*shape)
    pages = _take(size)
    view = memoryview(pages)
    weakref.finalize(view, _free.append, pages).atexit = False
    return torch.frombuffer(view, dtype=like.dtype, count=prod(shape)).view(shape)


def _take(size: int) -> mmap.mmap:
    """The smallest free piece that suits; else a new one, in the place of the next smaller, so
    that pieces become larger rather than more."""
    pieces = sorted(_free, key=len)
    for pages in (piece for piece in pieces if size <= len(piece) <= 4 * size):
        with contextlib.suppress(ValueError):  # another thread was first
            _free.remove(pages)
            return pages
    for pages in [piece for piece in pieces if len(piece) < size][-1:]:
        with contextlib.suppress(ValueError):
            _free.remove(pages)
    try:
        # Half as much again, for a larger batch: pages that nobody touches take no memory.
        length = size + size // 2
        return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {size:,} bytes of a layer: {error}") from error
