"""The recipes of deploy/recipes/rloo are settings that the trainer takes."""

from pathlib import Path

import pytest
import yaml

from trainer.rloo.config import RlooSettings

RECIPES = sorted((Path(__file__).parents[3] / "deploy" / "recipes" / "rloo").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read(path: Path) -> None:
    settings = RlooSettings.model_validate(yaml.safe_load(path.read_text()))
    assert settings.prompts_per_step >= 1


def test_the_papers_settings_are_the_defaults() -> None:
    paper = yaml.safe_load((RECIPES[0].parent / "qwen2.5_1.5b.yaml").read_text())
    told = RlooSettings.model_validate(paper)
    default = RlooSettings.model_validate(
        {name: paper[name] for name in ("policy", "prompts", "output_dir", "reward")}
    )
    assert told.objective == default.objective
    assert told.optimizer == default.optimizer
    for name in ("batch_size", "epochs"):
        assert getattr(told, name) == getattr(default, name)
    for name in ("samples_per_prompt", "temperature", "max_prompt_tokens", "max_new_tokens"):
        assert getattr(told.generation, name) == getattr(default.generation, name)
