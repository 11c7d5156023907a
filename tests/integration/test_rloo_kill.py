"""kill -9 of the learner, of vLLM and of the reward service, at random moments of one run."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.checkpoints import tiny_checkpoint
from tests.integration.test_rloo_run import ENVIRONMENT, PROMPTS, start, vllm_processes
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics
from trainer.rloo.ledger import read_ledger

pytestmark = [pytest.mark.integration, pytest.mark.vllm, pytest.mark.timeout(1200)]

EPOCHS, STEPS = 12, 36
WINDOWS = ((2, 9), (13, 20), (24, 31))
"""Steps between which each of the three is killed."""


class Service:
    """The reward service on a port of its own, to be killed and started again."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "service", "--model", str(model)]
        self.start()

    def start(self) -> None:
        command = [*self._command, "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=ENVIRONMENT)
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                assert self.process.poll() is None
            time.sleep(0.2)
        raise AssertionError("the service is not ready")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "policy", "qwen2", "causal", hidden_size=128)
    tiny_checkpoint(tmp_path / "reward", "qwen2", "reward")
    write_rows(tmp_path / "train.jsonl", [{"prompt": f"question {n}?"} for n in range(PROMPTS)])
    write_rows(tmp_path / "held.jsonl", [{"prompt": f"held out {n}?"} for n in range(4)])
    return tmp_path


@pytest.fixture
def service(world: Path) -> Iterator[Service]:
    service = Service(world / "reward")
    try:
        yield service
    finally:
        service.kill()


class Run:
    """The learner's process; a killed one is started again by the same command."""

    def __init__(self, world: Path, url: str) -> None:
        self.directory = world / "run"
        self._again: Callable[[], subprocess.Popen[str]] = lambda: start(
            world, url, "run", "--epochs", str(EPOCHS), "--checkpoint_steps", "3"
        )
        self.process = self._again()

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 400
        while not any(line["step"] >= step for line in read_metrics(self.directory)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill_learner(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.process = self._again()

    def kill_vllm(self) -> None:
        (server,) = vllm_processes(self.directory)
        os.kill(server, signal.SIGKILL)


def test_each_is_killed_once_and_every_prompt_is_trained_once(
    world: Path, service: Service
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"the moments follow from seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    run = Run(world, service.url)

    def kill_service() -> None:
        service.kill()
        time.sleep(rng.uniform(0, 3))
        service.start()

    killings = [run.kill_learner, run.kill_vllm, kill_service]
    rng.shuffle(killings)
    try:
        for window, killing in zip(WINDOWS, killings, strict=True):
            run.wait_for_step(rng.randint(*window))
            time.sleep(rng.uniform(0, 0.3))
            assert run.process.poll() is None, "the run was over before all three were killed"
            killing()
        _, errors = run.process.communicate(timeout=600)
        assert run.process.returncode == 0, errors
    finally:
        run.process.kill()
    lines = [line for line in read_metrics(run.directory) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    fresh = [line["sampler_difference"] for line in lines if line["staleness_max"] == 0]
    assert max(fresh) <= 1e-3, "a server that came back must write with the current weights"
    ledger = read_ledger(run.directory)
    trained = Counter(position for line in ledger for position in line.get("trained", ()))
    skipped = Counter(int(p) for line in ledger for p in line.get("skipped", {}))
    assert trained + skipped == Counter(range(EPOCHS * PROMPTS))
    log = (run.directory / "vllm.log").read_text(errors="replace")
    assert log.count("Application startup complete") == 3, "first, after each kill that ends it"
    assert vllm_processes(run.directory) == []
