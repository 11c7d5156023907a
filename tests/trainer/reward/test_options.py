"""LoRA, activation checkpointing, the best model, early stop, several seeds, the model card."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from tests.checkpoints import tiny_checkpoint
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics
from trainer.reward import acceleration, lora, sharding, zero
from trainer.reward.best import Best
from trainer.reward.config import ComputeSettings, LoraSettings, RewardSettings, RunSettings
from trainer.reward.sweep import sweep
from trainer.reward.train import Run, train


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("backbone"), task="backbone")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"It is {n}, thanks.", "rejected": f"No {n}!"}
        for n in range(16)
    ]
    write_rows(path, rows)
    return path


def settings(backbone: Path, pairs: Path, output_dir: Path, **changes: Any) -> RewardSettings:
    values: dict[str, Any] = {
        "backbone": str(backbone),
        "output_dir": output_dir,
        "loss": {"name": "bt_bsr", "lambda": 0.01},
        "data": {"train": str(pairs), "validation": {"held": str(pairs)}},
        "optimiser": {"lr": 3e-3, "batch_pairs": 8, "epochs": 3},
        "run": {"tensorboard": False, "validate_every": 1, "checkpoint_every": 2},
    }
    return RewardSettings(**(values | changes))


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, backbone: Path, pairs: Path
) -> RewardSettings:
    run = settings(
        backbone, pairs, tmp_path_factory.mktemp("runs") / "lora", lora={"rank": 4, "alpha": 8.0}
    )
    train(run)
    return run


def logits(model: Any, sequences: list[list[int]]) -> list[float]:
    with torch.no_grad():
        return [model.eval()(input_ids=torch.tensor([one])).logits.item() for one in sequences]


SEQUENCES = [[5, 6, 7, 8, 9], [40, 41, 42], [9] * 70]


def test_merged_model_and_adapter_are_one(adapted: RewardSettings, backbone: Path) -> None:
    merged = RewardModel.load(adapted.output_dir / "model")
    base = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=1, dtype=torch.float32
    )
    base.config.pad_token_id = merged.classifier.config.pad_token_id
    theirs = PeftModel.from_pretrained(base, str(adapted.output_dir / "adapter"))
    expected = logits(theirs, SEQUENCES)
    assert score_token_ids(merged, SEQUENCES) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1e-3


def test_the_adapter_is_served_as_the_merged_model(adapted: RewardSettings) -> None:
    merged = RewardModel.load(adapted.output_dir / "model")
    adapter = RewardModel.load(adapted.output_dir / "adapter")
    told = {"model_version"}
    assert adapter.contract.model_dump(exclude=told) == merged.contract.model_dump(exclude=told)
    assert adapter.encoder.text("It is 3").token_ids == merged.encoder.text("It is 3").token_ids
    expected = score_token_ids(merged, SEQUENCES)
    assert score_token_ids(adapter, SEQUENCES) == pytest.approx(expected, abs=1e-5)


def test_adapters_learn_and_the_backbone_stays(adapted: RewardSettings, backbone: Path) -> None:
    lines = [line for line in read_metrics(adapted.output_dir) if "probe/margin" in line]
    assert lines[-1]["probe/margin"] > lines[0]["probe/margin"] + 0.1
    stored = load_file(adapted.output_dir / "adapter" / lora.WEIGHTS)
    assert sum("lora_A" in name for name in stored) == 2 * 7  # layers × linear layers in each
    merged = load_file(adapted.output_dir / "model/model.safetensors")
    name = "model.embed_tokens.weight"
    frozen = load_file(backbone / "model.safetensors")[name.removeprefix("model.")]
    assert merged[name].equal(frozen)


def test_adapters_change_nothing_before_training(backbone: Path) -> None:
    model = RewardModel.from_backbone(backbone)
    before = score_token_ids(model, SEQUENCES)
    lora.add_adapters(model, LoraSettings(rank=2), seed=0)
    assert score_token_ids(model.eval(), SEQUENCES) == before


class _Killed(BaseException):
    pass


def test_a_killed_lora_run_resumes_to_the_same_weights(
    adapted: RewardSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = adapted.model_copy(update={"output_dir": tmp_path / "run"})
    step = Run.step

    def killed_step(self: Run) -> None:
        step(self)
        if self.progress.step == 3:
            raise _Killed

    monkeypatch.setattr(Run, "step", killed_step)
    with pytest.raises(_Killed):
        train(run)
    monkeypatch.setattr(Run, "step", step)
    train(run)
    left, right = (
        load_file(path / "model/model.safetensors") for path in (adapted.output_dir, run.output_dir)
    )
    assert all(left[name].equal(right[name]) for name in left)


def test_adapter_alone(backbone: Path, pairs: Path, tmp_path: Path) -> None:
    short = {"lr": 1e-3, "batch_pairs": 8, "max_steps": 1}
    train(settings(
        backbone, pairs, tmp_path / "run", lora={"save": "adapter"}, optimiser=short
    ))  # fmt: skip
    assert (tmp_path / "run/adapter/adapter_config.json").is_file()
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize("architecture", ["qwen2", "bert"])
def test_activation_checkpointing_changes_no_weight(
    pairs: Path, tmp_path: Path, architecture: str
) -> None:
    start = tiny_checkpoint(tmp_path / "backbone", architecture, task="backbone")
    short = {"lr": 1e-3, "batch_pairs": 8, "max_steps": 2}
    for name, on in (("kept", False), ("again", True)):
        train(settings(
            start, pairs, tmp_path / name, optimiser=short,
            compute={"activation_checkpointing": on},
        ))  # fmt: skip
    kept, again = (load_file(tmp_path / name / "model/model.safetensors")
                   for name in ("kept", "again"))  # fmt: skip
    assert all(kept[name].equal(again[name]) for name in kept)


def test_best_and_early_stop(backbone: Path, pairs: Path, tmp_path: Path) -> None:
    """The lowest margin is that of the start, so waiting for a lower one ends soon."""
    run = {
        "tensorboard": False, "validate_every": 1, "patience": 3,
        "best_by": "validation/held/margin", "best_is": "lowest",
    }  # fmt: skip
    long = {"lr": 3e-3, "batch_pairs": 8, "epochs": 50, "warmup_share": 0.0}
    train(settings(backbone, pairs, tmp_path / "run", run=run, optimiser=long))
    report = json.loads((tmp_path / "run/report.json").read_text())
    measured = [
        (line["validation/held/margin"], line["step"])
        for line in read_metrics(tmp_path / "run")
        if "validation/held/margin" in line
    ]
    assert report["best"]["value"] == min(measured)[0]
    assert report["best"]["step"] == min(measured)[1]
    assert report["training"]["steps"] == report["best"]["step"] + 3 < 100
    best = RewardModel.load(tmp_path / "run/best")
    assert best.model_version != RewardModel.load(tmp_path / "run/model").model_version
    assert (
        f"The model of step {report['best']['step']}"
        in (tmp_path / "run/best/README.md").read_text()
    )


def test_best_counts_what_it_waited() -> None:
    options = RunSettings(best_by="a", patience=2)
    first = Best().after(1, {"a": 0.5}, options)
    same = first.after(2, {"a": 0.5}, options)
    assert (first.step, same.step, same.waited) == (1, 1, 1)
    assert not same.is_given_up(options)
    assert same.after(3, {"a": float("nan")}, options).is_given_up(options)
    assert same.after(3, {"a": 0.6}, options) == Best(3, 0.6)
    with pytest.raises(UsageError, match="there are a"):
        Best().after(1, {"a": 0.5}, RunSettings(best_by="b"))


def test_patience_needs_a_measure() -> None:
    with pytest.raises(ValueError, match="patience needs best_by"):
        RunSettings(patience=1)


def test_seeds(backbone: Path, pairs: Path, tmp_path: Path) -> None:
    short = {"lr": 1e-3, "batch_pairs": 8, "max_steps": 2}
    run = settings(backbone, pairs, tmp_path / "run", optimiser=short, seed=5, seeds=2)
    sweep(run)
    content = json.loads((tmp_path / "run/sweep.json").read_text())
    reports = [
        json.loads((tmp_path / f"run/seed-{seed}/report.json").read_text()) for seed in (5, 6)
    ]
    margins = [report["measured"]["validation/held"]["margin"] for report in reports]
    found = content["measured"]["validation/held/margin"]
    assert content["seeds"] == [5, 6]
    assert found["values"] == margins
    assert margins[0] != margins[1]
    assert found["mean"] == pytest.approx(sum(margins) / 2)
    assert found["std"] == pytest.approx(abs(margins[0] - margins[1]) / 2**0.5)
    assert "head_norm" in content["measured"]
    assert "head_norm" in (tmp_path / "run/sweep.html").read_text()


def test_the_card_tells_the_run(adapted: RewardSettings) -> None:
    card = (adapted.output_dir / "model/README.md").read_text()
    report = json.loads((adapted.output_dir / "report.json").read_text())
    assert card.startswith("---\nbase_model:")
    assert "bt_bsr, lambda 0.01" in card
    assert f"{report['data']['pairs_trained']} pairs of 16 rows" in card
    assert f"{report['measured']['validation/held']['accuracy']:.4g}" in card
    stats = report["contract"]["stats"]
    assert f"mean {stats['mean']:.4g}, standard deviation {stats['std']:.4g}" in card
    assert RewardModel.load(adapted.output_dir / "model").contract.stats is not None


def test_on_cuda_no_attention_is_planned_by_length(
    backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        acceleration.apply(RewardModel.from_backbone(backbone), ComputeSettings())
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_liger_needs_cuda(backbone: Path, pairs: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UsageError, match=r"compute\.liger: .*CUDA"):
        train(settings(backbone, pairs, tmp_path / "run", compute={"liger": True}))


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "only FSDP2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "fsdp_offload_params",
        ),
    ],
)
def test_what_the_launcher_asks_in_vain(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], part: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=part):
        sharding.check_launcher()


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"ZERO_STAGE": "2"}, "zero_stage 2"),
        ({"CONFIG_FILE": "zero.json"}, "deepspeed_config_file"),
        ({"ZERO_STAGE": "3", "OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device"),
        ({"ZERO_STAGE": "3", "OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device"),
    ],
)
def test_what_the_launcher_asks_of_deepspeed_in_vain(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], part: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(UsageError, match=part):
        zero.check_launcher()


def test_without_deepspeed_zero3_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UsageError, match="pip install deepspeed"):
        zero.check_launcher()
