"""Runs the stages of a demo or a study in one directory, with progress, and remembers the time."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from trainer.demo.processes import Job, run_jobs
from trainer.demo.stages import Stage, clear, only_one


class StageRunner:
    """Stages below ``root``, whose logs are in ``root/logs``.

    ``seconds``: by stage, all its attempts together.
    """

    def __init__(self, root: Path, *, restart: bool = False) -> None:
        self.root = root
        self.restart = restart
        self.logs = root / "logs"
        self.console = Console()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Nobody else works in this directory meanwhile, and SIGTERM ends it as Ctrl-C does."""
        with only_one(self.root), _terminable():
            if self.restart:
                clear(self.root)
            self.logs.mkdir(exist_ok=True)
            yield

    def run_stage(
        self, stage: Stage, jobs: Sequence[Job], *, side_by_side: int | None = None
    ) -> None:
        """The jobs of a stage, side by side: all of them, or so many at a time."""
        with self.stage(stage) as wanted:
            if not wanted:
                return
            with _bars(self.console) as bars:
                tasks = {job.name: bars.add_task(job.name, total=job.steps) for job in jobs}
                run_jobs(
                    jobs,
                    self.logs,
                    lambda job, step: bars.update(tasks[job.name], completed=step),
                    side_by_side=side_by_side,
                )

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[bool]:
        """Whether the stage is to be run; it is done when the block ends without an exception."""
        if stage.done:
            self.console.print(f"{stage.name}: done before ({stage.seconds:.0f} s)")
            self.seconds[stage.name] = stage.seconds
            yield False
            return
        stage.begin()
        try:
            yield True
        except BaseException:
            stage.interrupt()
            raise
        stage.finish()
        self.seconds[stage.name] = stage.seconds
        self.console.print(f"{stage.name}: {stage.seconds:.0f} s")


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: what it started is stopped, and it can go on later."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
