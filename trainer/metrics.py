"""What a run measured: ``metrics.jsonl``, and the same numbers for TensorBoard."""

import json
import math
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from reward_model.atomic import write_text

FILE_NAME = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first; a torn last line (a killed run) is left out.

    A value that was not finite reads as None. An absent file reads as no lines.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    lines.pop()  # what follows the last newline: empty, or cut off by a kill
    return [json.loads(line) for line in lines]


def has_metrics(run_dir: Path) -> bool:
    """Whether a run has begun there: one that could not read its data or model leaves none."""
    return (run_dir / FILE_NAME).is_file()


class MetricsWriter:
    """Appends one JSON object per :meth:`log` to ``run_dir/metrics.jsonl``.

    Args:
        run_dir: made when absent.
        resume_step: None starts the file anew. A step keeps the lines up to and including it and
            drops the later ones, which a resumed run is about to write again.
        tensorboard: also write event files under ``run_dir/tensorboard``.

    Several lines may carry one step (training values, then an evaluation). Use one writer per
    run directory and, with several ranks, on the first rank only.
    """

    def __init__(
        self,
        run_dir: Path | str,
        resume_step: int | None = None,
        *,
        tensorboard: bool = True,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_step is None else self._lines_up_to(resume_step)
        path = self.run_dir / FILE_NAME
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file: IO[str] = path.open("a")
        self._events = _event_writer(self.run_dir, resume_step) if tensorboard else None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write ``{"step", "time", **values}``; ``time`` is in seconds since the epoch.

        Names may hold ``/`` to group curves in TensorBoard. NaN and infinities become null.
        """
        line: dict[str, float | None] = {"step": step, "time": round(time.time(), 3)}
        line |= {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, float(value), step)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lines_up_to(self, step: int) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.run_dir) if line["step"] <= step]


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _event_writer(run_dir: Path, resume_step: int | None) -> Any:
    # Imported here because it is slow and not every run wants it.
    from torch.utils.tensorboard import SummaryWriter

    if resume_step is None:  # curves of an earlier run would be drawn over this one's
        shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
    purge_step = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)
