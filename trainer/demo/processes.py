"""The demo's commands as processes of their own, watched through their files, always stopped."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model.atomic import write_text
from reward_model.errors import SumzeroError
from trainer.metrics import FILE_NAME

GRACE_SECONDS = 30.0
START_SECONDS = 180.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """``python -m module --config …`` and the directory it works in.

    ``steps``: how many steps its ``metrics.jsonl`` will count, for the progress bar.
    """

    name: str
    module: str
    config: dict[str, Any]
    directory: Path
    steps: int = 0

    def step(self) -> int:
        """The last step in ``metrics.jsonl``; 0 while there is none."""
        try:
            with (self.directory / FILE_NAME).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().split(b"\n")[:-1]
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, KeyError, ValueError):
            return 0


def run_jobs(
    jobs: Sequence[Job],
    logs: Path,
    show: Callable[[Job, int], None],
    *,
    side_by_side: int | None = None,
) -> None:
    """Run ``jobs`` side by side until all have ended; the first that fails ends the others.

    Args:
        logs: directory for ``<job>.yaml`` and ``<job>.log``.
        show: called with a job and its step, again and again.
        side_by_side: at most so many at a time, in their order; None: all at once.

    Raises:
        SumzeroError: a job failed; with the last line it said.
    """
    with _processes() as start:
        waiting, running = list(jobs), dict[str, tuple[Job, subprocess.Popen[bytes]]]()
        while waiting or running:
            while waiting and len(running) < (side_by_side or len(jobs)):
                job = waiting.pop(0)
                running[job.name] = (job, start(job, logs))
            for job, process in list(running.values()):
                code = process.poll()
                show(job, job.step())
                if code is None:
                    continue
                if code != 0:
                    raise SumzeroError(_failure(job.name, code, _log(logs, job.name)))
                show(job, job.steps)
                del running[job.name]
            time.sleep(POLL_SECONDS)


@contextmanager
def service(
    models: dict[str, Path], logs: Path, *, name: str = "service", device: str = "cpu"
) -> Iterator[str]:
    """``python -m service`` with ``models`` on a free port; yields its URL once it is ready.

    Args:
        name: of its log and its configuration in ``logs``.
    """
    config = {
        "model": [{"name": model, "path": str(path)} for model, path in models.items()],
        "device": device,
        "port": 0,
        "log_format": "json",
        "drain_seconds": 5,
    }
    job = Job(name, "service", config, logs)
    with _processes() as start:
        process = start(job, logs)
        yield _ready_url(process, _log(logs, job.name))


def _ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            if '"message": "ready"' in line:
                return f"http://127.0.0.1:{json.loads(line)['port']}"
        code = process.poll()
        if code is not None:
            raise SumzeroError(_failure("service", code, log))
        time.sleep(POLL_SECONDS)
    raise SumzeroError(f"service: not ready after {START_SECONDS:.0f} s; see {log}")


@contextmanager
def _processes() -> Iterator[Callable[[Job, Path], subprocess.Popen[bytes]]]:
    """Yield a way to start processes; all that still run are stopped at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(job: Job, logs: Path) -> subprocess.Popen[bytes]:
        config = logs / f"{job.name}.yaml"
        write_text(config, json.dumps(job.config, indent=2) + "\n")  # JSON is YAML
        with _log(logs, job.name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", job.module, "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        started.append(process)
        return process

    try:
        yield start
    finally:
        _stop(started)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, so that a run can write its checkpoint; after a grace period SIGKILL."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # What the process had started itself and left behind is in its process group.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _end_with_parent() -> None:
    """Linux sends SIGTERM to the child when the demo is killed, even with -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _environment() -> dict[str, str]:
    # Models of this size gain nothing from a second thread, and processes that run side by side
    # with as many threads as cores lose most of their time waiting for each other.
    own = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUMZERO_")}
    return own | kept


def _log(logs: Path, name: str) -> Path:
    return logs / f"{name}.log"


def _failure(name: str, code: int, log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    return f"{name} failed with exit code {code}: {last} (all of it: {log})"
