"""Every configuration of the demo is one that its command accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from reward_model.command import Settings, read_settings
from service.settings import ServiceSettings
from trainer.demo.cells import build_cells
from trainer.demo.config import SCALES, DemoSettings
from trainer.demo.plan import (
    LOSSES,
    evaluation_config,
    reward_config,
    reward_steps,
    rloo_config,
    sft_config,
    sft_steps,
)
from trainer.evaluation.config import EvaluationSettings
from trainer.reward.config import RewardSettings
from trainer.rloo.config import RlooSettings
from trainer.sft.config import SftSettings


def accepted(settings: type[Settings], config: dict[str, Any], tmp_path: Path) -> Any:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return read_settings(settings, ["--config", str(path)], prog="test")


@pytest.mark.parametrize("name", SCALES)
def test_accepted(name: str, tmp_path: Path) -> None:
    scale, data, output = SCALES[name], tmp_path / "world", tmp_path / "out"
    sft = accepted(SftSettings, sft_config(scale, 0, data, output), tmp_path)
    assert sft.from_scratch.hidden_size == scale.hidden_size
    for loss, expected in {"bt": "bt", "bsr": "bt_bsr"}.items():
        config = reward_config(scale, 0, LOSSES[loss], data, output, output)
        assert accepted(RewardSettings, config, tmp_path).loss.name == expected
        accepted(EvaluationSettings, evaluation_config(loss, data, output, output), tmp_path)
        rloo = rloo_config(
            scale,
            0,
            loss,
            policy=output,
            prompts=data,
            heldout=data,
            output=output,
            backend="embedded",
            url="http://127.0.0.1:1",
            gold_url="http://127.0.0.1:2",
            mean=0.5,
            std=2.0,
        )
        settings = accepted(RlooSettings, rloo, tmp_path)
        assert settings.reward.model == loss
        assert settings.reward.gold_url == "http://127.0.0.1:2"


def test_the_service_takes_models_by_name(tmp_path: Path) -> None:
    config = {"model": [{"name": "bt", "path": str(tmp_path)}], "port": 0, "log_format": "json"}
    assert accepted(ServiceSettings, config, tmp_path).model[0].name == "bt"


def test_steps_are_what_the_trainers_will_count() -> None:
    scale = SCALES["ci"].model_copy(update={"sft_epochs": 2, "reward_epochs": 3})
    assert sft_steps(scale) == 2 * -(-scale.sizes.conversations // 16)
    assert reward_steps(scale, 65) == 3 * 3


@pytest.mark.parametrize("name", SCALES)
def test_the_world_is_large_enough(name: str) -> None:
    sizes = SCALES[name].sizes
    cells = build_cells(0, sizes)
    assert len(cells["conversations"]) == sizes.conversations
    assert 0.9 * sizes.train < len(cells["train_pairs"]) <= sizes.train
    assert len(cells["policy_prompts"]) == sizes.policy
    assert SCALES[name].heldout_prompts < sizes.policy


def test_ci_is_smaller() -> None:
    full, ci = SCALES["full"], SCALES["ci"]
    for steps in (sft_steps, lambda scale: reward_steps(scale, scale.sizes.train)):
        assert steps(ci) < steps(full)
    assert ci.rloo_steps * ci.rloo_batch < full.rloo_steps * full.rloo_batch


def test_the_directory_is_named_after_the_scale() -> None:
    assert DemoSettings(scale="ci").directory == Path("runs/demo-ci")
