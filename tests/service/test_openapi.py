"""``openapi.yaml`` is what the app says about itself."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.openapi import to_yaml

FILE = Path(__file__).parents[2] / "openapi.yaml"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


def test_the_checked_in_file_is_the_apps() -> None:
    assert FILE.read_text() == to_yaml(), "run: make openapi"


def test_every_error_of_every_post_route_has_the_one_shape(document: dict[str, Any]) -> None:
    routes = [operation["post"] for operation in document["paths"].values() if "post" in operation]
    assert len(routes) >= 2
    for route in routes:
        for status in ("401", "404", "413", "422", "429", "500", "503", "504"):
            schema = route["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        if isinstance(node, list):
            return [found for value in node for found in references(value)]
        return []

    found = references(document)
    assert found
    for reference in found:
        name = reference.removeprefix("#/components/schemas/")
        assert name in document["components"]["schemas"], reference


@pytest.mark.asyncio(loop_scope="module")
async def test_the_running_app_serves_the_same(
    http: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    assert (await http.get("/openapi.json")).json() == document
