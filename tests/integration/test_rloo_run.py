"""Whole runs with a real vLLM server and the real service: they end, and nothing is left."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reward_model.encode import Message
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer
from tests.conftest import VLLM_PYTHON
from trainer.metrics import read_metrics
from trainer.rloo.config import Reward
from trainer.rloo.ledger import read_ledger
from trainer.rloo.reward import Rewards
from trainer.rloo.samples import Sample

pytestmark = [pytest.mark.integration, pytest.mark.vllm, pytest.mark.timeout(1800)]

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PROMPTS = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rloo-run")
    # Heads of 32: the smallest that vLLM's CPU attention computes.
    tiny_checkpoint(path / "policy", "qwen2", "causal", hidden_size=128)
    tiny_checkpoint(path / "reward", "qwen2", "reward")
    for name, count in (("train", PROMPTS), ("held", 8)):
        rows = [json.dumps({"prompt": f"{name} question {n}?"}) + "\n" for n in range(count)]
        (path / f"{name}.jsonl").write_text("".join(rows))
    return path


@pytest.fixture(scope="module")
def service(world: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "--model", str(world / "reward")]
    # The template goes on with a newline after the EOS at which a sampled text ends.
    command += ["--chat_format", "chatml", "--port", str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def start(world: Path, url: str, name: str, *arguments: str) -> subprocess.Popen[str]:
    values = {
        "policy": world / "policy", "prompts": world / "train.jsonl", "output_dir": world / name,
        "reward.url": url, "generation.backend": "vllm", "generation.python": VLLM_PYTHON,
        "generation.samples_per_prompt": 4, "generation.max_new_tokens": 24,
        "generation.max_prompt_tokens": 300, "heldout.prompts": world / "held.jsonl",
        "optimizer.learning_rate": 1e-3, "batch_size": 32, "epochs": 2, "checkpoint_steps": 2,
    }  # fmt: skip
    flags = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    flags.append("--no-tensorboard")
    command = [sys.executable, "-m", "trainer.rloo", *flags, *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def vllm_processes(run: Path) -> list[int]:
    """Processes whose command line names the run's weights."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "vllm.entrypoints" in words and str(run) in words:
                found.append(int(entry.name))
    return found


def test_a_run_ends_by_itself_and_leaves_nothing_running(world: Path, service: str) -> None:
    process = start(world, service, "whole")
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    run = world / "whole"
    assert vllm_processes(run) == []
    lines = read_metrics(run)
    assert lines[0]["probe/sampler_difference"] <= 1e-3
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 2 * PROMPTS * 4 // 32 + 1))
    fresh = [line for line in steps if line["staleness_max"] == 0]
    assert all(line["sampler_difference"] <= 1e-3 for line in fresh), "same weights, same numbers"
    assert max(line["staleness_max"] for line in steps) == 1
    trained = Counter(p for line in read_ledger(run) for p in line.get("trained", ()))
    assert trained == Counter(range(2 * PROMPTS))


def test_kill_9_of_the_learner_takes_vllm_along_and_the_run_resumes(
    world: Path, service: str
) -> None:
    process = start(world, service, "killed")
    run = world / "killed"
    deadline = time.monotonic() + 900
    while not any(line.get("step", 0) >= 3 for line in read_metrics(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert vllm_processes(run)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for _ in range(1200):
        if not vllm_processes(run):
            break
        time.sleep(0.1)
    assert vllm_processes(run) == []
    again = start(world, service, "killed")
    _, errors = again.communicate(timeout=1200)
    assert again.returncode == 0, errors
    trained = Counter(p for line in read_ledger(run) for p in line.get("trained", ()))
    assert trained == Counter(range(2 * PROMPTS))


def test_a_synchronous_run_is_on_policy_throughout(world: Path, service: str) -> None:
    process = start(world, service, "synchronous", "--staleness", "0", "--max_steps", "4")
    _, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    steps = [line for line in read_metrics(world / "synchronous") if "loss" in line]
    assert len(steps) == 4
    assert all(line["staleness_max"] == 0 for line in steps)
    assert all(line["sampler_difference"] <= 1e-3 for line in steps)
    assert all(line["truncated_share"] == 0 for line in steps)


def test_get_reward_gives_the_scores_of_score(world: Path, service: str) -> None:
    tokenizer = tiny_tokenizer()
    messages = [Message(role="user", content="How do I bake bread?")]
    texts = ("Mix flour, water and salt.", "Who knows?")
    samples = []
    for text in texts:
        ids = (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
        samples.append(Sample(ids, (-1.0,) * len(ids), True, 0, text))

    async def scores(url: str) -> tuple[float | None, ...]:
        async with Rewards.open(Reward(url=url), tokenizer) as rewards:
            return (await rewards.score(messages, samples)).rewards

    found = asyncio.run(scores(f"{service}/get_reward"))
    assert found == pytest.approx(asyncio.run(scores(service)), abs=1e-6)
    assert found[0] != found[1]
