"""``/metrics`` apart from ``/score``: its own app, without keys and without anything else."""

import httpx
import pytest
from pydantic import SecretStr

from reward_model.errors import UsageError
from service.app import create_metrics_app
from service.deployment import build_application
from service.embedded import EmbeddedScorer
from service.gate import Gate
from service.settings import ServiceSettings
from tests.service.conftest import OpenClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

ITEM = {"items": [{"token_ids": [5, 6, 7]}]}


async def test_without_a_port_of_their_own_metrics_ask_for_a_key(open_client: OpenClient) -> None:
    async with open_client(api_keys=(SecretStr("k"),)) as http:
        assert (await http.get("/metrics")).status_code == 401
        answer = await http.get("/metrics", headers={"Authorization": "Bearer k"})
        assert answer.status_code == 200


async def test_with_one_they_are_there_alone(
    open_client: OpenClient, scorer: EmbeddedScorer, settings: ServiceSettings
) -> None:
    apart = settings.model_copy(update={"metrics_port": 9100, "api_keys": (SecretStr("k"),)})
    app = create_metrics_app(scorer, apart, metrics=scorer.metrics, gate=Gate())
    async with open_client(metrics_port=9100) as http:
        assert (await http.get("/metrics")).status_code == 404
        assert (await http.post("/score", json=ITEM)).status_code == 200
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as http:
        text = (await http.get("/metrics")).text
        assert 'sumzero_requests_total{route="/score",status="200"}' in text
        for path in ("/score", "/v1/models", "/ready", "/openapi.json"):
            answer = await http.get(path)
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "not_found"


async def test_a_closed_gate_is_not_ready(
    scorer: EmbeddedScorer, settings: ServiceSettings
) -> None:
    gate = Gate()
    app = create_metrics_app(scorer, settings, metrics=scorer.metrics, gate=gate)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://metrics"
    ) as http:
        assert "sumzero_ready 1.0" in (await http.get("/metrics")).text
        gate.close()
        assert "sumzero_ready 0.0" in (await http.get("/metrics")).text


async def test_ray_has_no_second_port(settings: ServiceSettings) -> None:
    with pytest.raises(UsageError, match="metrics_port"):
        build_application(settings.model_copy(update={"metrics_port": 9100}))
