"""Ctrl-C and SIGTERM: the first asks the run to checkpoint and end, the second ends it at once."""

import asyncio
import signal
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While entered, signals set :attr:`wanted` instead of ending the process.

    Outside of the training loop there is nothing to finish, so the task that entered is cancelled
    at once; ``finishing`` says that the loop is running and will look at :attr:`wanted`.
    """

    def __init__(self) -> None:
        self.finishing = False
        self.wanted = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    async def or_result(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What ``work`` returns; None when the run is to end before that."""
        task = asyncio.create_task(work)
        wanted = asyncio.create_task(self.wanted.wait())
        try:
            await asyncio.wait((task, wanted), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() and not self.wanted.is_set() else None
        finally:
            for one in (task, wanted):
                one.cancel()
            await asyncio.gather(task, wanted, return_exceptions=True)

    def _interrupt(self) -> None:
        assert self._task is not None
        if self.wanted.is_set() or not self.finishing:
            self._task.cancel()
        self.wanted.set()
