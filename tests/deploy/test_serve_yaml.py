"""``deploy/serve.yaml`` fits the schema of Ray Serve and the application that it deploys."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from reward_model.errors import UsageError
from service.autoscaling import QueuedTokens
from service.deployment import INGRESS, build
from service.settings import ServiceSettings

FILE = Path(__file__).parents[2] / "deploy" / "serve.yaml"


@pytest.fixture
def content() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return parsed


def test_the_file_fits_the_schema(content: dict[str, Any]) -> None:
    ServeDeploySchema.model_validate(content)


def test_every_deployment_named_in_the_file_is_in_the_application(content: dict[str, Any]) -> None:
    (application,) = content["applications"]
    settings = ServiceSettings(**application["args"])
    expected = {INGRESS} | {f"model-{model.name}" for model in settings.model}
    assert {block["name"] for block in application["deployments"]} == expected
    assert build(application["args"])._bound_deployment.name == INGRESS


def test_the_autoscaling_policy_is_found(content: dict[str, Any]) -> None:
    (application,) = content["applications"]
    (found,) = (
        block["autoscaling_config"]
        for block in application["deployments"]
        if "autoscaling_config" in block
    )
    assert AutoscalingConfig(**found).policy.policy_function == (
        f"{QueuedTokens.__module__}:{QueuedTokens.__name__}"
    )


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(UsageError, match="modell"):
        build({"modell": ["a"]})
