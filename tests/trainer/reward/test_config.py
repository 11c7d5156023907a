from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from reward_model.command import read_settings
from reward_model.errors import UsageError
from trainer.reward.config import LossSettings, RewardSettings

MINIMAL = {
    "backbone": "b",
    "output_dir": "out",
    "loss": {"name": "bt_bsr", "lambda": 0.01},
    "data": {"train": "train.jsonl"},
    "optimiser": {"lr": 1e-5},
}


def read(tmp_path: Path, content: dict[str, object], *arguments: str) -> RewardSettings:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return read_settings(RewardSettings, ["--config", str(path), *arguments], prog="test")


def test_lambda_is_spelled_so_in_files_and_on_the_command_line(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL).loss.lambda_ == 0.01
    assert read(tmp_path, MINIMAL, "--loss.lambda", "1e-4").loss.lambda_ == 1e-4


def test_lambda_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMZERO_LOSS__LAMBDA", "0.5")
    assert read(tmp_path, MINIMAL).loss.lambda_ == 0.5


def test_defaults_belong_to_the_loss() -> None:
    bsr = LossSettings(name="bt_bsr")
    assert (bsr.lambda_, bsr.scope, bsr.scale) == (1e-3, "global", "paper")
    bt = LossSettings(name="bt")
    assert (bt.lambda_, bt.scope, bt.scale, bt.c) == (None, None, None, None)
    assert LossSettings(name="bt_center").c == 0.01


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        ({"name": "bt", "lambda": 0.1}, "lambda is a setting of bt_bsr, bt_l2, not of bt"),
        ({"name": "bt_l2", "scope": "micro"}, "scope is a setting of bt_bsr"),
        ({"name": "bt_bsr", "c": 0.1}, "c is a setting of bt_center"),
        ({"name": "bt_hinge"}, "bt_hinge needs hinge_margin"),
        ({"name": "bt_hinge", "hinge_margin": 0}, "greater than 0"),
        ({"name": "bt_bsr", "lambda": -1}, "greater than or equal to 0"),
        ({"name": "btt"}, "Input should be 'bt'"),
        ({"lambda": 0.1}, "Field required"),
    ],
)
def test_settings_of_other_losses_are_refused(loss: dict[str, object], part: str) -> None:
    with pytest.raises(ValidationError) as error:
        LossSettings.model_validate(loss)
    assert part in str(error.value)


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"optimiser\.learning_rate: unknown key"):
        read(tmp_path, MINIMAL | {"optimiser": {"lr": 1e-5, "learning_rate": 1e-5}})


def test_micro_scope_needs_the_size_of_a_micro_batch(tmp_path: Path) -> None:
    loss = {"loss": {"name": "bt_bsr", "scope": "micro"}}
    with pytest.raises(UsageError, match=r"compute\.micro_batch_pairs"):
        read(tmp_path, MINIMAL | loss)
    settings = read(tmp_path, MINIMAL | loss, "--compute.micro_batch_pairs", "16")
    assert settings.compute.micro_batch_pairs == 16


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = read(tmp_path, MINIMAL)
    with pytest.raises(ValidationError):
        settings.seed = 3
    with pytest.raises(ValidationError):
        settings.loss.lambda_ = 3.0


def test_validation_sets_from_the_command_line(tmp_path: Path) -> None:
    settings = read(tmp_path, MINIMAL, "--data.validation", '{"in_domain": "a.jsonl"}')
    assert settings.data.validation == {"in_domain": "a.jsonl"}


def test_the_recipes_are_valid() -> None:
    recipes = sorted(Path("deploy/recipes/reward").glob("*.yaml"))
    assert recipes
    for path in recipes:
        read_settings(RewardSettings, ["--config", str(path)], prog="test")


def test_the_spec_for_the_contract() -> None:
    spec = LossSettings(name="bt_bsr", lambda_=0.01).spec()
    assert spec.model_dump(by_alias=True) == {
        "name": "bt_bsr",
        "lambda": 0.01,
        "scope": "global",
        "scale": "paper",
    }
