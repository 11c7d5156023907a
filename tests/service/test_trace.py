"""``POST /v1/trace`` and the page that draws it."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.routes import trace
from service.settings import ModelSettings, ServiceSettings
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.asyncio(loop_scope="module")

OpenClient = Callable[..., httpx.AsyncClient]
BODY = {"prompt": "Where is the Louvre?", "response": "In Paris, on the river."}


async def test_each_score_is_that_of_the_sequence_so_far(
    http: httpx.AsyncClient, model: RewardModel
) -> None:
    answer = (await http.post("/v1/trace", json=BODY)).json()
    ids = model.encoder.prompt_response(BODY["prompt"], BODY["response"]).token_ids
    points = answer["points"]
    start = len(ids) - len(points)
    alone = [score_token_ids(model, [ids[: end + 1]])[0] for end in range(start, len(ids))]
    assert [point["score"] for point in points] == alone
    assert [point["position"] for point in points] == list(range(len(points)))
    shown = "".join(point["token"] for point in points)
    assert shown.startswith("In Paris, on the river.")
    assert answer["num_tokens"] == len(ids)


async def test_its_last_score_is_the_score(http: httpx.AsyncClient) -> None:
    item = {"prompt": BODY["prompt"], "responses": [BODY["response"]]}
    whole = (await http.post("/score", json={"items": [item]})).json()["results"][0]
    points = (await http.post("/v1/trace", json=BODY)).json()["points"]
    assert points[-1]["score"] == whole["scores"][0]


async def test_a_long_response_is_thinned_to_its_end(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = (await http.post("/v1/trace", json=BODY)).json()["points"]
    monkeypatch.setattr(trace, "MAX_POINTS", 4)
    points = (await http.post("/v1/trace", json=BODY)).json()["points"]
    assert 1 < len(points) <= 4
    assert points[-1] == every[-1]
    assert all(point in every for point in points)


async def test_messages_and_an_empty_response(http: httpx.AsyncClient) -> None:
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    response = await http.post("/v1/trace", json={"prompt": prompt, "response": ""})
    assert response.status_code == 200
    assert len(response.json()["points"]) >= 1


async def test_too_long_is_422_with_the_reason(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/trace", json={"prompt": "a", "response": "word " * 3000})
    assert response.status_code == 422
    assert response.json()["error"]["details"]["type"] == "too_long"


async def test_an_encoder_has_none(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "bert", "bert")
    settings = ServiceSettings(model=(ModelSettings(name="bert", path=path),))
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    transport = httpx.ASGITransport(create_app(scorer, settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        response = await http.post("/v1/trace", json=BODY)
    await scorer.close()
    assert response.status_code == 422
    assert "model" in response.json()["error"]["message"]


async def test_the_page_needs_no_key_and_names_no_other_host(open_client: OpenClient) -> None:
    async with open_client(api_keys=(SecretStr("key"),)) as http:
        page = await http.get("/")
        assert (await http.post("/v1/trace", json=BODY)).status_code == 401
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    hosts = page.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "//" not in hosts.replace("// ", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
