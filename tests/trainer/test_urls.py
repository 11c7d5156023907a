"""URLs among the settings of commands: refused by the name of their key."""

import pytest
from pydantic import ValidationError

from reward_model.command import read_settings
from reward_model.errors import UsageError
from trainer.data.generate import GenerateSettings
from trainer.data.label import LabelSettings
from trainer.evaluation.config import EvaluationSettings
from trainer.rloo.config import Reward, RlooSettings

RLOO = ["--policy", "p", "--prompts", "x.jsonl", "--output_dir", "o"]
URL = "http://localhost:8000"


@pytest.mark.parametrize(
    ("settings", "arguments", "key"),
    [
        (RlooSettings, [*RLOO, "--reward.url"], "reward.url"),
        (RlooSettings, [*RLOO, "--reward.url", URL, "--reward.gold_url"], "reward.gold_url"),
        (RlooSettings, [*RLOO, "--reward.url", URL, "--generation.urls"], "generation.urls"),
        (EvaluationSettings, ["--sets", '{"a": "b"}', "--output_dir", "o", "--url"], "url"),
        (LabelSettings, ["--source", "s", "--out", "o", "--url"], "url"),
        (GenerateSettings, ["--prompts", "p", "--out", "o", "--model", "m", "--url"], "url"),
    ],
)
def test_a_url_is_checked_before_anything_starts(settings, arguments, key) -> None:
    read_settings(settings, [*arguments, URL], prog="command")
    with pytest.raises(UsageError) as caught:
        read_settings(settings, [*arguments, "localhost:8000"], prog="command")
    assert str(caught.value).startswith(f"{key}: ")
    assert "'localhost:8000' is no address of a server" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_of_several_rewards_is_checked() -> None:
    with pytest.raises(ValidationError, match="'b:1' is no address of a server"):
        Reward(sources=[{"name": "a", "url": ["http://a:1", "b:1"]}])
    given = ["http://a:1", "http://b:1"]
    assert Reward(sources=[{"name": "a", "url": given}]).all_sources[0].url == given
