"""The threads in which models load and compute.

OpenMP gives every thread that computes helpers of its own, and as soon as these are more than the
machine has processors, GCC's lets all of them sleep at every barrier instead of waiting awake: a
forward on two cores took 1.4 times as long. So on a CPU a process computes in one thread, and what
loads the models leaves no helpers behind.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class ComputeThreads:
    """One thread for all models on the CPU, one for each of the others."""

    def __init__(self) -> None:
        self._cpu = ThreadPoolExecutor(1, thread_name_prefix="compute")

    def take(self, name: str, device: torch.device) -> ThreadPoolExecutor:
        """The thread of model ``name``."""
        if device.type == "cpu":
            return self._cpu
        return ThreadPoolExecutor(1, thread_name_prefix=f"compute-{name}")

    def give_back(self, thread: ThreadPoolExecutor) -> None:
        """A model's thread ends with it, unless others compute there."""
        if thread is not self._cpu:
            thread.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the thread that is left; what it is doing, it does to the end."""
        self._cpu.shutdown(wait=False, cancel_futures=True)


async def in_passing_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call ``function`` in a thread that ends when it returns."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="passing")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
    finally:
        thread.shutdown(wait=False)


@contextmanager
def without_helpers() -> Iterator[None]:
    """Compute with this thread alone, which then keeps no helpers that others would have to spare.

    For loading, in a thread that computes nothing later.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
