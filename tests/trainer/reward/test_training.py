"""Whole runs on tiny models: what they write, that they learn, and that they resume exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from tests.checkpoints import tiny_checkpoint
from trainer.data.rows import write_rows
from trainer.metrics import read_metrics
from trainer.reward import checkpoint
from trainer.reward.config import RewardSettings
from trainer.reward.train import train


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("backbone"), task="backbone")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in which the polite answer is chosen, and scored responses of the same kind."""
    path = tmp_path_factory.mktemp("data")
    pairs = [
        {
            "prompt": f"Question {number}: what is {number} plus one?",
            "chosen": f"It is {number + 1}, thank you.",
            "rejected": f"Who cares about {number}?",
        }
        for number in range(30)
    ]
    write_rows(path / "train.jsonl", pairs)
    write_rows(path / "held_out.jsonl", [
        {"prompt": "Question 99", "chosen": "It is, thank you.", "rejected": "Who cares?"}
    ])  # fmt: skip
    scored = [
        {
            "prompt_id": str(number),
            "prompt": f"Question {number}",
            "responses": [
                {"model": "a", "text": f"It is {number}, thank you.", "gold": 2.0},
                {"model": "b", "text": f"Who cares about {number}?", "gold": -1.0},
                {"model": "c", "text": f"Who cares?{number}", "gold": -1.0},
            ],
        }
        for number in range(40, 45)
    ]
    write_rows(path / "scored.jsonl", scored)
    return path


def settings(start: Path, files: Path, output_dir: Path, **changes: Any) -> RewardSettings:
    values: dict[str, Any] = {
        "backbone": str(start),
        "output_dir": output_dir,
        "loss": {"name": "bt_bsr", "lambda": 0.01},
        "data": {
            "train": str(files / "train.jsonl"),
            "validation": {
                "held_out": str(files / "held_out.jsonl"),
                "scored": str(files / "scored.jsonl"),
            },
        },
        "optimiser": {"lr": 1e-3, "batch_pairs": 8, "epochs": 4},
        "compute": {"micro_batch_tokens": 300},
        "run": {"validate_every": 8, "checkpoint_every": 3, "tensorboard": False},
    }
    return RewardSettings(**(values | changes))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, backbone: Path, files: Path
) -> RewardSettings:
    run = settings(backbone, files, tmp_path_factory.mktemp("runs") / "run")
    train(run)
    return run


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def test_it_learns_the_preference(finished: RewardSettings) -> None:
    lines = read_metrics(finished.output_dir)
    before = next(line for line in lines if line["step"] == 0)
    after = [line for line in lines if "probe/accuracy" in line][-1]
    assert after["probe/accuracy"] == 1.0
    assert after["probe/margin"] > before["probe/margin"] + 0.5
    assert after["validation/scored/accuracy"] == 1.0
    # Two of three gold scores are equal: the best τ-b there is 2/√(3·2).
    assert after["validation/scored/tau"] == pytest.approx(2 / 6**0.5)


def test_metrics_of_every_step(finished: RewardSettings) -> None:
    lines = read_metrics(finished.output_dir)
    steps = [line for line in lines if "loss/total" in line]
    assert [line["step"] for line in steps] == list(range(1, 17))
    for line in steps:
        total = line["loss/preference"] + line["loss/weighted_penalty"]
        assert line["loss/total"] == pytest.approx(total)
        assert line["loss/penalty"] == pytest.approx(line["train/batch_mean"] ** 2, rel=1e-3)
        assert line["loss/weight"] == pytest.approx(line["loss/lambda"])
        assert line["tokens_per_second"] > 0
        assert 0 <= line["shared_token_share"] < 1
    assert steps[3]["pairs_seen"] == 30  # the ragged last batch of an epoch counts its six pairs
    assert steps[-1]["lr"] < steps[8]["lr"]
    names = {name for line in lines for name in line}
    assert {
        "head_norm",
        "train/h_norm_std",
        "train/pair_variance",
        "probe/h_difference_mean",
        "grad_norm",
    } <= names


def test_measured_from_epoch_0(finished: RewardSettings) -> None:
    first = read_metrics(finished.output_dir)[0]
    assert first["step"] == 0
    assert first["probe/h_difference_mean"] > 0
    assert first["validation/held_out/reward_std"] > 0


def test_report_and_contract(finished: RewardSettings) -> None:
    report = json.loads((finished.output_dir / "report.json").read_text())
    assert report["data"]["pairs_trained"] == 30
    assert report["training"]["steps"] == 16
    assert report["objective"] == {"squared_mean": 0.01, "pair_variance": 0.01 / 8}
    model = RewardModel.load(finished.output_dir / "model")
    loss, stats = model.contract.loss, model.contract.stats
    assert loss is not None
    assert (loss.name, loss.lambda_, loss.scope, loss.scale) == ("bt_bsr", 0.01, "global", "paper")
    assert stats is not None
    assert (stats.split, stats.n) == ("held_out", 2)
    assert report["contract"]["model_version"] == model.model_version


def test_the_page_shows_the_curves(finished: RewardSettings) -> None:
    page = (finished.output_dir / "report.html").read_text()
    assert "Reward model, bt_bsr (lambda 0.01" in page
    assert page.count("<img") == 6
    assert "held_out" in page


def test_transformers_opens_the_model(finished: RewardSettings) -> None:
    path = finished.output_dir / "model"
    ours = RewardModel.load(path)
    ids = list(ours.encoder.prompt_response("Question 3", "It is 4, thank you.").token_ids)
    theirs = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits.item()
    assert score_token_ids(ours, [ids])[0] == pytest.approx(expected, abs=1e-5)


def test_a_finished_run_is_left_alone(
    finished: RewardSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished.output_dir / "report.json").stat().st_mtime_ns
    train(finished)
    assert "already finished" in capsys.readouterr().out
    assert (finished.output_dir / "report.json").stat().st_mtime_ns == before


class _Killed(BaseException):
    """Stands for a kill: nothing handles it."""


@pytest.mark.parametrize("kill_at", [2, 7, 16])
def test_a_killed_run_resumes_to_the_same_weights(
    finished: RewardSettings,
    backbone: Path,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int,
) -> None:
    run = settings(backbone, files, tmp_path / "run")
    original = checkpoint.save
    from trainer.reward.train import Run

    step = Run.step

    def killed_step(self: Run) -> None:
        step(self)
        if self.progress.step == kill_at:
            raise _Killed

    monkeypatch.setattr(Run, "step", killed_step)
    with pytest.raises(_Killed):
        train(run)
    monkeypatch.setattr(Run, "step", step)
    assert not (run.output_dir / "report.json").exists()
    train(run)
    assert checkpoint.save is original
    reference, resumed = weights(finished.output_dir), weights(run.output_dir)
    assert reference.keys() == resumed.keys()
    assert all(reference[name].equal(resumed[name]) for name in reference)
    told = [line["step"] for line in read_metrics(run.output_dir) if "loss/total" in line]
    assert told == list(range(1, 17))


def test_old_checkpoints_go(finished: RewardSettings) -> None:
    kept = sorted(path.name for path in (finished.output_dir / "checkpoints").iterdir())
    assert kept == ["step-00000015", "step-00000016"]


def test_a_checkpoint_between_is_a_model_too(finished: RewardSettings) -> None:
    path = checkpoint.latest(finished.output_dir)
    assert path is not None
    assert RewardModel.load(path / "model").contract.stats is None


def test_other_settings_in_the_same_directory_are_refused(finished: RewardSettings) -> None:
    other = finished.model_copy(update={"seed": 9})
    with pytest.raises(UsageError, match=r"other settings \(seed\)"):
        train(other)


def test_a_run_that_could_not_begin_binds_nobody(
    backbone: Path, files: Path, tmp_path: Path
) -> None:
    short = {"optimiser": {"lr": 1e-3, "batch_pairs": 8, "max_steps": 1}}
    with pytest.raises(UsageError, match="no such file"):
        train(settings(backbone, files, tmp_path / "run", **short, data={"train": "absent.jsonl"}))
    train(settings(backbone, files, tmp_path / "run", **short, seed=3))
    assert (tmp_path / "run" / "report.json").is_file()


def test_restart_throws_the_old_run_away(
    backbone: Path, files: Path, tmp_path: Path, finished: RewardSettings
) -> None:
    short = {"optimiser": {"lr": 1e-3, "batch_pairs": 8, "max_steps": 2}}
    train(settings(backbone, files, tmp_path / "run", **short, seed=3))
    train(settings(backbone, files, tmp_path / "run", **short, seed=4, restart=True))
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss/total" in line] == [1, 2]


def test_changed_data_is_refused_on_resume(backbone: Path, files: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    rows = [{"prompt": "a", "chosen": f"b{n}", "rejected": f"c{n}"} for n in range(12)]
    write_rows(data, rows)
    run = settings(backbone, files, tmp_path / "run", data={"train": str(data)})
    train(run)
    (run.output_dir / "report.json").unlink()
    write_rows(data, rows[:-1])
    with pytest.raises(UsageError, match=r"data\.train has changed"):
        train(run)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"backbone": "/nowhere"}, "/nowhere: cannot be opened as a backbone"),
        ({"data": {"train": "/nowhere.jsonl"}}, "/nowhere.jsonl: no such file"),
        ({"chat_template": "/nowhere.jinja"}, "/nowhere.jinja: no such file"),
    ],
)
def test_what_is_missing_is_named(
    backbone: Path, files: Path, tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        train(settings(backbone, files, tmp_path / "run", **changes))


def test_nothing_fits(backbone: Path, files: Path, tmp_path: Path) -> None:
    data = {"train": str(files / "train.jsonl"), "max_length": 5}
    with pytest.raises(UsageError, match="none of 30 pairs fits into 5 tokens"):
        train(settings(backbone, files, tmp_path / "run", data=data))


def test_a_margin_column_without_a_place_is_refused(
    backbone: Path, files: Path, tmp_path: Path
) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.0}
    write_rows(tmp_path / "train.jsonl", [row])
    data = {"train": str(tmp_path / "train.jsonl")}
    loss = {"name": "bt_dr"}
    with pytest.raises(UsageError, match=r"data\.use_margin"):
        train(settings(backbone, files, tmp_path / "run", data=data, loss=loss))


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "bt"},
        {"name": "bt_hinge", "hinge_margin": 1.0},
        {"name": "bt_norm"},
        {"name": "bt_dr"},
        {"name": "bt_center"},
        {"name": "bt_l2"},
        {"name": "bt_bsr", "scope": "micro", "scale": "reference"},
        {"name": "bt_bsr", "scope": "device"},
    ],
    ids=lambda loss: "-".join(map(str, loss.values())),
)
def test_every_loss_trains(
    backbone: Path, files: Path, tmp_path: Path, loss: dict[str, Any]
) -> None:
    run = settings(
        backbone,
        files,
        tmp_path / "run",
        loss=loss,
        data={"train": str(files / "train.jsonl")},
        compute={"micro_batch_pairs": 3},
        optimiser={"lr": 1e-3, "batch_pairs": 8, "max_steps": 2},
    )
    train(run)
    last = [line for line in read_metrics(run.output_dir) if "loss/total" in line][-1]
    assert last["loss/total"] == pytest.approx(
        last["loss/preference"] + last["loss/weighted_penalty"]
    )


def test_an_encoder_in_bfloat16(files: Path, tmp_path: Path) -> None:
    backbone = tiny_checkpoint(tmp_path / "backbone", "bert", task="backbone")
    run = settings(
        backbone,
        files,
        tmp_path / "run",
        compute={"precision": "bfloat16"},
        optimiser={"lr": 1e-3, "batch_pairs": 8, "epochs": 4},
    )
    train(run)
    last = [line for line in read_metrics(run.output_dir) if "probe/accuracy" in line][-1]
    assert last["probe/accuracy"] > 0.9
    model = RewardModel.load(run.output_dir / "model")
    assert model.head.bias is not None
    assert float(model.head.bias.detach().abs().sum()) == 0
    assert model.dtype == torch.float32
