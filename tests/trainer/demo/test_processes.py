"""Real processes: small modules written on the spot and run with ``python -m``."""

import os
import signal
import time
from pathlib import Path

import pytest

from reward_model.errors import SumzeroError
from trainer.demo.processes import Job, run_jobs

COUNTS = """
import json, sys, pathlib, yaml
config = yaml.safe_load(open(sys.argv[2]))
out = pathlib.Path(config["output_dir"]); out.mkdir(parents=True, exist_ok=True)
with open(out / "metrics.jsonl", "a") as file:
    for step in range(1, 4):
        file.write(json.dumps({"step": step}) + "\\n")
"""
FAILS = "import sys\nprint('working')\nprint('prog: disk is full', file=sys.stderr)\nsys.exit(3)\n"
SLEEPS = """
import pathlib, subprocess, sys, time, yaml
config = yaml.safe_load(open(sys.argv[2]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(config["pids"]).write_text(f"{child.pid}")
time.sleep(600)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {"counts": COUNTS, "fails": FAILS, "sleeps": SLEEPS}.items():
        (tmp_path / f"demo_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def ended(pid: int) -> bool:
    """Whether the process ends within seconds: a signal sent is not yet a process gone."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_jobs_run_with_their_config_and_show_their_steps(modules: Path) -> None:
    jobs = [
        Job(name, "demo_counts", {"output_dir": str(modules / name)}, modules / name, steps=3)
        for name in ("a", "b")
    ]
    shown: list[tuple[str, int]] = []
    run_jobs(jobs, modules / "logs", lambda job, step: shown.append((job.name, step)))
    assert ("a", 3) in shown
    assert ("b", 3) in shown


def test_so_many_jobs_at_a_time_in_their_order(modules: Path) -> None:
    jobs = [
        Job(name, "demo_counts", {"output_dir": str(modules / name)}, modules / name, steps=3)
        for name in ("a", "b", "c")
    ]
    shown: list[str] = []
    run_jobs(jobs, modules / "logs", lambda job, step: shown.append(job.name), side_by_side=1)
    assert shown == sorted(shown)
    assert set(shown) == {"a", "b", "c"}


def test_a_failure_is_one_line_and_ends_the_others(modules: Path) -> None:
    pids = modules / "pids"
    jobs = [
        Job("slow", "demo_sleeps", {"pids": str(pids)}, modules),
        Job("bad", "demo_fails", {}, modules),
    ]
    with pytest.raises(SumzeroError, match=r"bad failed with exit code 3: prog: disk is full"):
        run_jobs(jobs, modules / "logs", lambda job, step: None)
    if pids.exists():  # the slow one got as far as starting its own child
        assert ended(int(pids.read_text()))


def test_an_interrupt_leaves_nothing_running(modules: Path) -> None:
    pids = modules / "pids"

    def interrupt(job: Job, step: int) -> None:
        if pids.exists() and pids.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            [Job("slow", "demo_sleeps", {"pids": str(pids)}, modules)], modules / "logs", interrupt
        )
    assert ended(int(pids.read_text()))


def test_a_job_that_is_killed_is_a_failure(modules: Path) -> None:
    pids = modules / "pids"

    def kill(job: Job, step: int) -> None:
        if pids.exists() and pids.read_text():
            status = Path(f"/proc/{pids.read_text()}/status").read_text()
            parent = next(line for line in status.splitlines() if line.startswith("PPid"))
            os.kill(int(parent.split()[1]), signal.SIGKILL)
            pids.write_text("")

    with pytest.raises(SumzeroError, match="slow failed with exit code -9"):
        run_jobs([Job("slow", "demo_sleeps", {"pids": str(pids)}, modules)], modules / "logs", kill)
