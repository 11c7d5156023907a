from pathlib import Path

import pytest
import yaml

from trainer.study.config import StudySettings
from trainer.study.policies.config import PolicyStudySettings

FOLDER = Path(__file__).parents[3] / "deploy/recipes/study"
POLICIES = sorted(FOLDER.glob("*_policies.yaml"))
REWARD_MODELS = sorted(set(FOLDER.glob("*.yaml")) - set(POLICIES))


@pytest.mark.parametrize("path", REWARD_MODELS, ids=lambda path: path.stem)
def test_a_recipe_is_what_the_command_reads(path: Path) -> None:
    settings = StudySettings.model_validate(yaml.safe_load(path.read_text()))
    assert settings.baseline in settings.arms
    micro = settings.training.micro_batch_pairs
    assert settings.training.batch_pairs % micro == 0


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_a_recipe_for_policies(path: Path) -> None:
    settings = PolicyStudySettings.model_validate(yaml.safe_load(path.read_text()))
    assert settings.steps % settings.every == 0
