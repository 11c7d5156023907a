from pathlib import Path

import pytest
import yaml

from trainer.study.config import StudySettings

RECIPES = sorted((Path(__file__).parents[3] / "deploy/recipes/study").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_what_the_command_reads(path: Path) -> None:
    settings = StudySettings.model_validate(yaml.safe_load(path.read_text()))
    assert settings.baseline in settings.arms
    micro = settings.training.micro_batch_pairs
    assert settings.training.batch_pairs % micro == 0
