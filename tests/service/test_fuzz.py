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
