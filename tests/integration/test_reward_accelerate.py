"""``accelerate launch`` with the files of ``deploy/accelerate``: two processes, as one process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

CONFIGS = Path(__file__).parents[2] / "deploy" / "accelerate"
STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward")
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"It is {n}.", "rejected": f"Who cares, {n * n}!"}
        for n in range(21)
    ]
    write_rows(path / "train.jsonl", rows)
    settings = {
        "backbone": str(tiny_checkpoint(path / "backbone", task="backbone")),
        "loss": {"name": "bt_bsr", "lambda": 1.0},
        "data": {"train": str(path / "train.jsonl")},
        "optimiser": {"lr": 1e-3, "batch_pairs": 8, "epochs": 2},
        "compute": {"micro_batch_tokens": 200, "activation_checkpointing": True},
        "run": {"tensorboard": False, "checkpoint_every": 2, "keep_checkpoints": 9},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    return path / "config.yaml"


@pytest.fixture(scope="module")
def one(config: Path) -> Path:
    """The run directory of one process."""
    return train(config, config.parent / "one", [])


def train(config: Path, output_dir: Path, launcher: list[str]) -> Path:
    command = [sys.executable, *launcher, "-m", "trainer.reward", "--config", str(config)]
    done = subprocess.run(
        [*command, "--output_dir", str(output_dir)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output_dir


def launcher(name: str) -> list[str]:
    port = ["--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / name), *port]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model/model.safetensors")


def assert_same_run(one: Path, two: Path) -> None:
    left, right = read_metrics(one), read_metrics(two)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for a, b in zip(left, right, strict=True):
        for name in ("loss/total", "loss/penalty", "grad_norm", "head_norm", "probe/h_norm_mean"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    found = weights(two)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, found[name], rtol=0, atol=2e-4)
    assert RewardModel.load(two / "model").contract.loss is not None


def test_ddp(config: Path, one: Path) -> None:
    assert_same_run(one, train(config, config.parent / "ddp", launcher("ddp_cpu.yaml")))


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="DeepSpeed compiles an operation: it needs a C++ compiler"
)
divided = pytest.mark.parametrize(
    "name", ["fsdp2_cpu.yaml", pytest.param("zero3_cpu.yaml", marks=needs_compiler)]
)


@divided
def test_a_divided_model_and_its_resumption(config: Path, one: Path, name: str) -> None:
    run_dir = train(config, config.parent / name, launcher(name))
    assert_same_run(one, run_dir)
    whole = weights(run_dir)
    # As if killed after step 4: everything later goes, and the same command goes on.
    (run_dir / "report.json").unlink()
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(run_dir / "checkpoints" / f"step-{STEPS:08d}")
    train(config, run_dir, launcher(name))
    assert all(tensor.equal(whole[name]) for name, tensor in weights(run_dir).items())


@pytest.fixture(scope="module")
def adapted(config: Path) -> tuple[Path, Path]:
    """The settings and the run directory of adapters on one process."""
    settings = yaml.safe_load(config.read_text()) | {"lora": {"rank": 4, "alpha": 8}}
    changed = config.with_name("adapters.yaml")
    changed.write_text(yaml.safe_dump(settings))
    return changed, train(changed, config.parent / "adapters", [])


@divided
def test_adapters_on_a_divided_model(adapted: tuple[Path, Path], name: str) -> None:
    config, one = adapted
    two = train(config, config.parent / f"adapters-{name}", launcher(name))
    assert_same_run(one, two)
    found = load_file(two / "adapter/adapter_model.safetensors")
    for key, tensor in load_file(one / "adapter/adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, found[key], rtol=0, atol=2e-4)


def test_compiled_layers_compute_the_same(config: Path, one: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    settings = yaml.safe_load(config.read_text())
    settings["compute"] = {"micro_batch_tokens": 200, "compile": True}
    changed = config.with_name("compiled.yaml")
    changed.write_text(yaml.safe_dump(settings))
    assert_same_run(one, train(changed, config.parent / "compiled", []))
