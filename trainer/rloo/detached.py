"""Blocking work in a thread that nobody waits for when the run ends."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def run_detached(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in a daemon thread of its own.

    Unlike ``asyncio.to_thread``, whose threads the event loop and the interpreter wait for at the
    end: a call that hangs can be given up, by a deadline around this one.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value, failure = None, None
        try:
            value = function(*arguments)
        except BaseException as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=work, daemon=True, name=function.__qualname__).start()
    return await answer
