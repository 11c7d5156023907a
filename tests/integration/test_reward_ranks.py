"""Two real processes: the gradient, and whole runs, are those of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.checkpoints import tiny_checkpoint
from tests.trainer.reward.test_objective import (
    cut,
    distance,
    gradient,
    make_pairs,
    whole_batch_gradient,
)
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics
from trainer.reward.config import LossSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def gradient_of_two_ranks(out: Path, size: int, count: int, dtype: str, scope: str) -> torch.Tensor:
    arguments = [str(out), str(size), str(count), dtype, scope]
    launch([*TORCHRUN, "-m", "tests.integration.reward_gradient_rank", *arguments])
    return load_file(out)["gradient"].double()


@pytest.mark.parametrize(
    ("count", "dtype", "bound"),
    [(64, "float64", 1e-6), (49, "float64", 1e-6), (64, "float32", 1e-4)],
)
def test_global_bsr_over_two_ranks_and_two_accumulation_steps(
    tmp_path: Path, count: int, dtype: str, bound: float
) -> None:
    """49 pairs: 24 and 25, so 2 micro-batches and 2; with 16 to a micro-batch both ragged."""
    found = gradient_of_two_ranks(tmp_path / "out", 16, count, dtype, "global")
    assert distance(whole_batch_gradient(make_pairs(count), lambda_=1.0), found) <= bound


def test_a_rank_without_pairs_keeps_step(tmp_path: Path) -> None:
    found = gradient_of_two_ranks(tmp_path / "out", 16, 33, "float64", "global")
    assert distance(whole_batch_gradient(make_pairs(33), lambda_=1.0), found) <= 1e-6


@pytest.mark.parametrize("scope", ["device", "micro"])
def test_other_scopes_are_other_objectives(tmp_path: Path, scope: str) -> None:
    found = gradient_of_two_ranks(tmp_path / "out", 16, 64, "float64", scope)
    assert distance(whole_batch_gradient(make_pairs(64), lambda_=1.0), found) > 1e-3
    if scope == "micro":  # pieces of 16 are the same pieces on one rank
        loss = LossSettings(name="bt_bsr", lambda_=1.0, scope="micro")
        assert distance(gradient(cut(make_pairs(64), 16), loss)[0], found) <= 1e-9


def test_a_run_on_two_ranks_is_the_run_of_one(tmp_path: Path) -> None:
    backbone = tiny_checkpoint(tmp_path / "backbone", task="backbone")
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"It is {n}.", "rejected": f"Who cares, {n * n}!"}
        for n in range(21)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    settings = {
        "backbone": str(backbone),
        "loss": {"name": "bt_bsr", "lambda": 1.0},
        "data": {"train": str(tmp_path / "train.jsonl")},
        "optimiser": {"lr": 1e-3, "batch_pairs": 8, "epochs": 2},
        "compute": {"micro_batch_tokens": 200},
        "run": {"tensorboard": False},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = ["-m", "trainer.reward", "--config", str(config), "--output_dir"]
    launch([sys.executable, *command, str(tmp_path / "one")])
    launch([*TORCHRUN, *command, str(tmp_path / "two")])

    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for left, right in zip(one, two, strict=True):
        for name in ("loss/total", "loss/penalty", "grad_norm", "train/batch_mean"):
            if name in left:
                assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-5)
        assert left.get("pairs_seen") == right.get("pairs_seen")
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=2e-4)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["training"]["tokens"] == reports[1]["training"]["tokens"]
