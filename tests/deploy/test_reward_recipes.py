"""Every reward recipe is settings that the trainer takes; every accelerate file is known to it."""

from pathlib import Path

import pytest
import yaml

from reward_model.command import read_settings
from trainer.reward.config import RewardSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
RECIPES = sorted((DEPLOY / "recipes" / "reward").glob("*.yaml"))
ACCELERATE = sorted((DEPLOY / "accelerate").glob("*.yaml"))
# Learning rates by size, as the paper gives them.
RATES = {"1b": 5e-6, "1.5b": 5e-6, "3b": 3e-6, "7b": 2e-6, "8b": 2e-6}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read(path: Path) -> None:
    settings = read_settings(RewardSettings, ["--config", str(path)], prog="test")
    size = path.stem.split("_")[1]
    if size in RATES:
        assert settings.optimiser.lr == RATES[size]
        assert settings.optimiser.batch_pairs == 128
        assert (settings.loss.lambda_, settings.seeds) == (1e-3, 4)


@pytest.mark.parametrize(
    "arm",
    [
        ["--loss.name", "bt", "--loss.lambda", "None"],
        ["--loss.name", "bt_hinge", "--loss.lambda", "None", "--loss.hinge_margin", "1.0"],
        ["--loss.scope", "micro", "--loss.scale", "reference", "--compute.micro_batch_pairs", "16"],
    ],
    ids=lambda arm: arm[1],
)
def test_the_other_arms_of_the_readme(arm: list[str]) -> None:
    recipe = DEPLOY / "recipes" / "reward" / "qwen2.5_3b.yaml"
    read_settings(RewardSettings, ["--config", str(recipe), *arm], prog="test")


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_accelerate_reads_its_files(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    content = yaml.safe_load(path.read_text())
    config = ClusterConfig.from_yaml_file(str(path))
    assert config.num_processes == content["num_processes"]
    assert config.mixed_precision == "no"  # compute.precision says it
