"""Whatever is sent: an answer in one of the documented shapes, and never a fault of ours."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATHS = (
    "/score",
    "/get_reward",
    "/remote_rm",
    "/v1/score/evaluation",
    "/classify",
    "/v1/embeddings",
)
KEYS = (
    *("items", "model", "messages", "text", "texts", "token_ids", "prompt", "responses"),
    *("response", "query", "input", "truncation", "normalize", "timeout_ms", "role", "content"),
    *("use_activation", "label"),
)


text = st.text(st.characters(), max_size=20)
leaf = st.none() | st.booleans() | st.integers() | st.floats() | text
anything: st.SearchStrategy[Any] = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | text, inner, max_size=3)
    ),
    max_leaves=10,
)
message = st.fixed_dictionaries({"role": text, "content": text})
item = (
    st.fixed_dictionaries({"prompt": text, "responses": st.lists(text, max_size=3)})
    | st.fixed_dictionaries({"messages": st.lists(message, max_size=3)})
    | st.fixed_dictionaries({"text": text})
    | st.fixed_dictionaries({"token_ids": st.lists(st.integers(-2, 400), max_size=5)})
)
nearly_right = st.fixed_dictionaries(
    {},
    optional={
        "items": st.lists(item, max_size=3),
        "query": st.lists(text, max_size=3),
        "messages": st.lists(message, max_size=3) | st.lists(text, max_size=3),
        "input": text | st.lists(text, max_size=3) | st.lists(st.integers(-2, 400), max_size=5),
        "text": st.lists(text, max_size=3),
        "prompt": text | st.lists(message, max_size=3),
        "response": text,
        "model": st.sampled_from(["tiny", "nobody"]),
        "truncation": st.sampled_from(["left", "right", "error"]),
        "use_activation": st.booleans(),
    },
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(path=st.sampled_from(PATHS), body=nearly_right | anything)
async def test_no_body_is_a_fault_of_ours(http: httpx.AsyncClient, path: str, body: Any) -> None:
    # Python's own JSON also writes NaN, infinities and half surrogates.
    headers = {"content-type": "application/json"}
    response = await http.post(path, content=json.dumps(body), headers=headers)
    assert response.status_code in (200, 404, 422), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"type", "message", "details"}
        assert error["message"]


HOSTILE = {
    "deep": b'{"items": ' + b"[" * 200_000,
    "deep and whole": b'{"items": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a number of 5,000 digits": b'{"items": [{"token_ids": [' + b"9" * 5000 + b"]}]}",
    "no UTF-8": b'{"items": [{"text": "\xff\xfe"}]}',
    "UTF-16": '{"items": []}'.encode("utf-16"),
    "NaN for a time": b'{"items": [{"text": "a"}], "timeout_ms": NaN}',
    "an endless time": b'{"items": [{"text": "a"}], "timeout_ms": 1e999}',
    "no time": b'{"items": [{"text": "a"}], "timeout_ms": 0}',
    "an id beyond 64 bits": b'{"items": [{"token_ids": [18446744073709551616]}]}',
    "half a token": b'{"items": [{"token_ids": [1.5]}]}',
    "true as a token": b'{"items": [{"token_ids": [true]}]}',
    "nothing": b"",
    "two bodies": b'{"items": [{"text": "a"}]}{"items": [{"text": "b"}]}',
}


@pytest.mark.parametrize("path", ["/score", "/classify"])
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bodies_are_malformed(http: httpx.AsyncClient, path: str, name: str) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post(path, content=HOSTILE[name], headers=headers)
    if name == "an id beyond 64 bits" and response.status_code == 200:
        [[error]] = [result["errors"] for result in response.json()["results"]]
        assert error["type"] == "invalid_token_id"
        return
    assert response.status_code == 422, response.text
    assert response.json()["error"]["type"] == "malformed_request"


async def test_odd_characters_have_a_score(http: httpx.AsyncClient) -> None:
    texts = ["\x00", "\u202e\ufeff", "\U0001f600" * 50, "\r\n" * 100]
    content = json.dumps({"items": [{"text": text} for text in texts]})
    headers = {"content-type": "application/json"}
    response = await http.post("/score", content=content, headers=headers)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["errors"] for result in results] == [[None]] * len(texts)
    half = json.dumps({"items": [{"text": "a"}, {"text": "a\ud800b"}]})
    response = await http.post("/score", content=half, headers=headers)
    assert response.status_code == 422
    assert "items.1.text" in response.json()["error"]["message"]
