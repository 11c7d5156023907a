"""A live line on a terminal; nothing in a log."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StepProgress:
    """A bar over the optimiser steps with reward, KL and length of the last one."""

    def __init__(self, total: int, done: int) -> None:
        columns = (
            TextColumn("RLOO"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("", total=total, completed=done)

    def show(self, step: int, values: dict[str, float]) -> None:
        text = " ".join(f"{name} {values[name]:.3g}" for name in ("reward", "kl", "length"))
        self._progress.update(self._task, completed=step, description=text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
