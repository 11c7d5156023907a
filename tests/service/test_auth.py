"""Who may ask, and how a key may come."""

from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr

pytestmark = pytest.mark.asyncio(loop_scope="module")

OpenClient = Callable[..., httpx.AsyncClient]
KEYS = (SecretStr("first key"), SecretStr("zweiter-schlüssel"))
SCORE = {"items": [{"token_ids": [1, 2]}]}


@pytest.mark.parametrize("key", ["first key", "zweiter-schlüssel"])
async def test_any_of_the_keys_opens_every_route(open_client: OpenClient, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()}
    async with open_client(api_keys=KEYS) as http:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert (await http.get(path, headers=headers)).status_code == 200
        assert (await http.post("/score", json=SCORE, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer ", "Bearer wrong", "Basic first key", "first key"]
)
async def test_no_key_or_a_wrong_one_is_401(open_client: OpenClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with open_client(api_keys=KEYS) as http:
        for method, path in (("POST", "/score"), ("GET", "/v1/models"), ("GET", "/metrics")):
            response = await http.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "unauthorized"
            assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_probes_need_no_key(open_client: OpenClient) -> None:
    async with open_client(api_keys=KEYS) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/ready")).status_code == 200


async def test_token_in_the_url_opens_the_compatibility_routes_only(
    open_client: OpenClient,
) -> None:
    async with open_client(api_keys=KEYS) as http:
        good, bad = {"token": "first key"}, {"token": "wrong"}
        query = {"query": []}
        assert (await http.post("/get_reward", json=query, params=good)).status_code == 200
        assert (await http.post("/get_reward", json=query, params=bad)).status_code == 401
        assert (await http.post("/get_reward", json=query)).status_code == 401
        assert (await http.post("/score", json=SCORE, params=good)).status_code == 401
        assert (await http.get("/v1/models", params=good)).status_code == 401


async def test_a_stranger_is_turned_away_before_the_body_is_read(open_client: OpenClient) -> None:
    async def body() -> object:
        raise AssertionError("the body was read")
        yield b""

    async with open_client(api_keys=KEYS) as http:
        assert (await http.post("/score", content=body())).status_code == 401  # type: ignore[arg-type]
