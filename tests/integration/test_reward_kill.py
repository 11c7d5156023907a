"""``python -m trainer.reward`` as a process: killed with -9 and resumed, and how it ends."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.checkpoints import tiny_checkpoint
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

STEPS = 40
KILLS = 10


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    backbone = tiny_checkpoint(path / "backbone", task="backbone")
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"It is {n}.", "rejected": f"Who cares, {n * n}!"}
        for n in range(40)
    ]
    write_rows(path / "train.jsonl", rows)
    settings = {
        "backbone": str(backbone),
        "loss": {"name": "bt_bsr"},
        "data": {"train": str(path / "train.jsonl")},
        "optimiser": {"lr": 1e-3, "batch_pairs": 8, "epochs": 8, "max_steps": STEPS},
        "compute": {"micro_batch_tokens": 200},
        "run": {"checkpoint_every": 3, "tensorboard": False},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return path / "config.yaml"


def start(config: Path, output_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer.reward", "--config", str(config)]
    return subprocess.Popen(
        [*command, "--output_dir", str(output_dir), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps_done(output_dir: Path) -> int:
    return max((line["step"] for line in read_metrics(output_dir)), default=0)


def kill_after(process: subprocess.Popen[str], output_dir: Path, step: int, delay: float) -> None:
    while steps_done(output_dir) < step and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()


def test_killed_at_random_moments_it_ends_with_the_same_weights(
    config: Path, tmp_path: Path
) -> None:
    whole = start(config, tmp_path / "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    draw = random.Random()
    output_dir = tmp_path / "killed"
    for number in range(KILLS):
        step = STEPS * number // KILLS + draw.randrange(STEPS // KILLS)
        kill_after(start(config, output_dir), output_dir, step, draw.uniform(0, 0.15))
    last = start(config, output_dir)
    _, errors = last.communicate()
    assert last.returncode == 0, errors
    left, right = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed")
    )
    assert all(left[name].equal(right[name]) for name in left)
    steps = [line["step"] for line in read_metrics(output_dir) if "loss/total" in line]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--optimiser.rate", "1"], "optimiser.rate"),
        (["--loss.name", "bt", "--loss.lambda", "1"], "lambda is a setting of bt_bsr"),
        (["--data.train", "/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["--backbone", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    config: Path, tmp_path: Path, arguments: list[str], part: str
) -> None:
    process = start(config, tmp_path / "run", *arguments)
    output, errors = process.communicate()
    assert process.returncode == 2
    assert output == ""
    assert len(errors.strip().splitlines()) == 1
    assert part in errors
