"""``compose.yaml`` and the Dockerfiles: what can be seen by reading them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import ServiceSettings
from trainer.rloo.config import RlooSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))


def test_old_and_new_compose_read_it() -> None:
    assert not COMPOSE.keys() - {"services", "volumes"} - {k for k in COMPOSE if k[:2] == "x-"}


def test_only_the_service_starts_without_a_profile() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["score"]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_image_ends_without_root_and_builds_without_buildkit(path: Path) -> None:
    text = path.read_text()
    assert "--mount" not in text
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if "ENTRYPOINT" in stage:
            assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1] in ("sumzero", "nobody")


def test_one_pinned_base_is_under_every_image() -> None:
    (base,) = {
        found
        for path in DOCKERFILES
        for found in re.findall(r"^ARG PYTHON_IMAGE=(.*)$", path.read_text(), re.MULTILINE)
    }
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)
    built = [service for service in SERVICES.values() if "build" in service]
    assert built
    for service in built:
        assert service["build"]["args"]["PYTHON_IMAGE"] == f"${{PYTHON_IMAGE:-{base}}}"


def test_settings_given_by_environment_exist() -> None:
    environment = SERVICES["score"]["environment"] | SERVICES["score-gpu"]["environment"]
    for name in environment.keys() - {"TRITON_CACHE_DIR"}:
        assert name.removeprefix("SUMZERO_").lower() in ServiceSettings.model_fields


def test_compiled_kernels_can_be_loaded_from_where_they_are_kept() -> None:
    service = SERVICES["score-gpu"]
    (cache,) = [
        mount
        for mount in service["tmpfs"]
        if mount.startswith(service["environment"]["TRITON_CACHE_DIR"] + ":")
    ]
    assert "exec" in cache.partition(":")[2].split(",")


def test_prometheus_and_grafana_are_pinned_and_mount_what_is_there() -> None:
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["monitoring"]
        assert re.fullmatch(r"\$\{\w+:-[\w/]+:v?\d+\.\d+\.\d+\}", SERVICES[name]["image"])
        for volume in SERVICES[name]["volumes"]:
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_dir(), source


def test_prometheus_scrapes_the_port_of_the_metrics() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/compose.yaml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert SERVICES["prometheus"]["links"] == [f"${{SCORER:-score}}:{host}"]
    assert int(port) == SERVICES["score"]["environment"]["SUMZERO_METRICS_PORT"]
    assert not any(port in published for published in SERVICES["score"]["ports"])


def test_the_recipe_of_the_rloo_profile_fits_the_stack() -> None:
    recipe = yaml.safe_load((ROOT / "deploy/recipes/rloo/compose.yaml").read_text())
    settings = RlooSettings(**recipe)
    assert settings.reward.url == "http://score:8000"
    assert settings.generation.urls == ["http://vllm:8000"]
    longest = settings.generation.max_prompt_tokens + settings.generation.max_new_tokens
    (limit,) = re.findall(r"max-model-len=\$\{\w+:-(\d+)\}", str(SERVICES["vllm"]["command"]))
    assert longest <= int(limit)
