"""The command as a process: signals, kill -9, exit codes, and nothing left running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.checkpoints import tiny_checkpoint
from trainer.metrics import read_metrics
from trainer.rloo.checkpoint import list_checkpoints
from trainer.rloo.ledger import read_ledger

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

REWARD = """
def score(prompts, completions):
    return [-len(text) / 10 for text in completions]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "policy", "qwen2", "causal")
    rows = [json.dumps({"prompt": f"question {n}?"}) + "\n" for n in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    (tmp_path / "short_answers.py").write_text(REWARD)
    path = tmp_path / "rloo.yaml"
    path.write_text(
        f"policy: {tmp_path}/policy\n"
        f"prompts: {tmp_path}/train.jsonl\n"
        f"output_dir: {tmp_path}/run\n"
        "reward: {sources: [{function: 'short_answers:score'}]}\n"
        "generation: {backend: embedded, max_new_tokens: 16, max_prompt_tokens: 64}\n"
        "batch_size: 8\nepochs: 5\ncheckpoint_steps: 5\ntensorboard: false\n"
    )
    return path


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{config.parent}:{Path.cwd()}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "trainer.rloo", "--config", str(config), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if any("loss" in line and line["step"] >= step for line in read_metrics(run)):
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get going")


def trained(run: Path) -> Counter[int]:
    return Counter(p for line in read_ledger(run) for p in line.get("trained", ()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_checkpoints_and_exits_130_and_the_run_goes_on(config: Path, number: int) -> None:
    run = config.parent / "run"
    process = start(config)
    wait_for_step(run, 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    steps = max(line["step"] for line in read_ledger(run))
    assert list_checkpoints(run)[-1].name == f"step-{steps}"
    again = start(config)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert trained(run) == Counter(range(200))


@pytest.mark.smoke
def test_kill_9_loses_nothing_and_trains_nothing_twice(config: Path) -> None:
    run = config.parent / "run"
    for step in (7, 16):
        process = start(config)
        wait_for_step(run, step, process)
        process.kill()
        process.communicate()
    last = start(config)
    _, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    assert trained(run) == Counter(range(200))
    steps = [line["step"] for line in read_metrics(run) if "loss" in line]
    assert steps == list(range(1, 51))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch_sizes", "8"], "batch_sizes"),
        (["--prompts", "absent.jsonl"], "absent.jsonl: no such file"),
        (["--policy", "./absent"], "no config.json"),
        (["--generation.samples_per_prompt", "1"], "samples_per_prompt must be 2 or more"),
        (["--generation.backend", "vllm", "--generation.python", "absent"], "make install-vllm"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    config: Path, arguments: list[str], says: str
) -> None:
    process = start(config, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert says in errors
    lines = [line for line in errors.splitlines() if line.startswith("python -m trainer.rloo")]
    assert len(lines) == 1
    assert "Traceback" not in errors


def test_a_reward_server_that_stays_away_ends_the_run_with_its_cause(config: Path) -> None:
    text = config.read_text().replace(
        "{sources: [{function: 'short_answers:score'}]}",
        "{url: 'http://127.0.0.1:9', timeout: 2}",
    )
    config.write_text(text)
    process = start(config)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "no scores within 2 s" in errors
    assert "Traceback" not in errors
