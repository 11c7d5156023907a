"""A live view on a terminal: how far the run is, and how it goes. Nothing in a log."""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_BARS = "▁▂▃▄▅▆▇█"
SHOWN_STEPS = 40
ROWS = (
    ("reward", "raw/gold", "kl", "entropy"),
    ("length", "eos_share", "ratio_max", "truncated_share"),
    ("idle/generate", "idle/score", "idle/learn", "tokens_per_second"),
    ("staleness", "dropped_stale", "retried", "masked_share"),
)


class StepProgress:
    """A bar over the optimiser steps, the last step's numbers, and the course of reward and KL."""

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("RLOO"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        )
        self._task = self._bar.add_task("", total=total, completed=done)
        self._courses: dict[str, deque[float]] = {
            name: deque(maxlen=SHOWN_STEPS) for name in ("reward", "kl")
        }
        self._live = (
            Live(self._bar, console=console, refresh_per_second=2) if console.is_terminal else None
        )

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of ``step``, as they go to ``metrics.jsonl``."""
        self._bar.update(self._task, completed=step)
        for name, course in self._courses.items():
            course.append(values[name])
        if self._live is not None:
            self._live.update(Group(self._bar, _table(values), self._plot()))

    def _plot(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, course in self._courses.items():
            span = f"{min(course):.3g} … {max(course):.3g}"
            table.add_row(name, sparkline(list(course)), span)
        return table

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def sparkline(values: list[float]) -> str:
    """One character per value, the lowest of them ▁ and the highest █."""
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _table(values: Mapping[str, float]) -> Table:
    table = Table.grid(padding=(0, 1))
    for names in ROWS:
        known = [name for name in names if name in values]
        table.add_row(*(cell for name in known for cell in (name, f"{values[name]:<9.3g}")))
    return table
