"""``accelerate launch`` with the files of ``deploy/accelerate``: two processes, as one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.checkpoints import tiny_checkpoint
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics
from trainer.rloo.checkpoint import list_checkpoints
from trainer.rloo.ledger import read_ledger

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

CONFIGS = Path(__file__).parents[2] / "deploy" / "accelerate"
POSITIONS, STEPS = 22, 8
"""Three prompts to a step: 2 for one rank and 1 for the other, and only one at the very end."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rloo-ranks")
    tiny_checkpoint(path / "policy", "qwen2", "causal")
    write_rows(path / "train.jsonl", [{"prompt": f"question {n}?"} for n in range(11)])
    write_rows(path / "held.jsonl", [{"prompt": f"held out {n}?"} for n in range(3)])
    (path / "short_answers.py").write_text(
        "def score(prompts, completions):\n    return [-len(text) / 10 for text in completions]\n"
    )
    settings = {
        "policy": str(path / "policy"),
        "prompts": str(path / "train.jsonl"),
        "reward": {"sources": [{"function": "short_answers:score"}]},
        "generation": {
            "backend": "embedded", "samples_per_prompt": 4, "max_new_tokens": 12,
            "max_prompt_tokens": 64,
        },
        "optimizer": {"learning_rate": 1e-3, "warmup": 0.0},
        "heldout": {"prompts": str(path / "held.jsonl"), "samples_per_prompt": 2},
        "batch_size": 12, "epochs": 2, "staleness": 0, "checkpoint_steps": 3,
        "max_batch_tokens": 100, "tensorboard": False,
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return path


def start(
    world: Path, output_dir: Path, launcher: str | None, arguments: list[str]
) -> subprocess.Popen[str]:
    launch = [] if launcher is None else [
        "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / launcher),
        "--main_process_port", "0",
    ]  # fmt: skip
    command = [sys.executable, *launch, "-m", "trainer.rloo", "--config", f"{world}/config.yaml"]
    return subprocess.Popen(
        [*command, "--output_dir", str(output_dir), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{world}:{Path.cwd()}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(world: Path, name: str, launcher: str | None, *arguments: str) -> Path:
    process = start(world, world / name, launcher, list(arguments))
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    return world / name


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "policy/model.safetensors")


@pytest.fixture(scope="module")
def one(world: Path) -> Path:
    """The run directory of one process."""
    return run(world, "one", None)


def assert_same_run(one: Path, two: Path) -> None:
    left, right = read_metrics(one), read_metrics(two)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    assert len([line for line in left if "loss" in line]) == STEPS
    names = ("loss", "kl", "grad_norm", "entropy", "advantage_std", "heldout/kl", "computed_tokens")
    for a, b in zip(left, right, strict=True):
        for name in names:
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-4), name
    found = weights(two)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, found[name], rtol=0, atol=2e-4)
    assert [line.get("trained") for line in read_ledger(one)] == [
        line.get("trained") for line in read_ledger(two)
    ]


def test_ddp(world: Path, one: Path) -> None:
    assert_same_run(one, run(world, "ddp", "ddp_cpu.yaml"))


def test_ddp_with_adapters_and_normalised_advantages(world: Path) -> None:
    # A seed by which no loss comes near 0: rounding of the weights, 1e-7, moves it by up to 2e-4.
    options = ["--lora.rank", "4", "--objective.normalize_advantages", "--seed", "2"]
    alone = run(world, "lora-one", None, *options)
    assert_same_run(alone, run(world, "lora-ddp", "ddp_cpu.yaml", *options))


def test_fsdp2_and_its_resumption(world: Path, one: Path) -> None:
    run_dir = run(world, "fsdp2", "fsdp2_cpu.yaml")
    assert_same_run(one, run_dir)
    whole = weights(run_dir)
    # As if killed after step 6: everything later goes, and the same command goes on.
    shutil.rmtree(run_dir / "policy")
    shutil.rmtree(run_dir / "checkpoints" / f"step-{STEPS}")
    assert list_checkpoints(run_dir)[-1].name == "step-6"
    run(world, "fsdp2", "fsdp2_cpu.yaml")
    for name, tensor in weights(run_dir).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-5)
    trained = Counter(p for line in read_ledger(run_dir) for p in line.get("trained", ()))
    assert trained == Counter(range(POSITIONS))


def test_a_failure_of_the_leader_ends_all_ranks_with_its_cause(world: Path) -> None:
    sources = json.dumps([{"url": "http://127.0.0.1:9"}])
    options = ["--reward.sources", sources, "--reward.timeout", "2"]
    process = start(world, world / "failed", "ddp_cpu.yaml", options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "no scores within 2 s" in errors


def test_sigterm_checkpoints_and_the_run_goes_on(world: Path) -> None:
    options = ["--epochs", "20"]
    process = start(world, world / "stopped", "ddp_cpu.yaml", options)
    deadline = time.monotonic() + 300
    while not any(line["step"] >= 4 for line in read_metrics(world / "stopped")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    steps = max(line["step"] for line in read_ledger(world / "stopped"))
    assert list_checkpoints(world / "stopped")[-1].name == f"step-{steps}"
    run(world, "stopped", "ddp_cpu.yaml", *options)
    ledger = read_ledger(world / "stopped")
    trained = Counter(p for line in ledger for p in line.get("trained", ()))
    assert trained == Counter(range(11 * 20))
