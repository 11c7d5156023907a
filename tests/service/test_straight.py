"""The short way to ``/score`` takes what FastAPI takes, and what it refuses is refused alike."""

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT, LONG = "application/json", "application/json; charset=utf-8"

TAKEN = [
    {"items": [{"token_ids": [5, 6, 7]}, {"text": "the rivér"}], "truncation": "left"},
    {"items": [{"prompt": "Bread?", "responses": ["Yes.", "No."]}], "timeout_ms": 30_000},
    {"items": [{"messages": [{"role": "user", "content": "Hi"}]}], "model": "other"},
    {"items": [{"text": "a" * 40_000}, {"token_ids": [-1]}, {"token_ids": [10**30]}]},
]
REFUSED = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    '{"items": []}',
    '{"items": [{"token_ids": [1.0]}]}',
    '{"items": [{"token_ids": [true]}]}',
    '{"items": [{"token_ids": ["1"]}]}',
    '{"items": [{"token_ids": [NaN]}]}',
    '{"items": [{"token_ids": [1], "text": "a"}]}',
    '{"items": [{"text": "a"}, {"text": "\\ud800"}]}',
    '{"items": [{"text": "a"}], "normalize": 1}',
    '{"items": [{"text": "a"}], "normalize": true}',
    '{"items": [{"text": "a"}], "timeout_ms": 1000.0}',
    '{"items": [{"text": "a"}], "timeout_ms": 0}',
    '{"items": [{"text": "a"}], "model": "unknown"}',
    '{"items": [{"text": "a"}], "unknown": 1}',
]


async def post(http: httpx.AsyncClient, content: str | bytes, content_type: str) -> httpx.Response:
    return await http.post("/score", content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize("body", TAKEN)
async def test_both_ways_give_the_same_answer(http: httpx.AsyncClient, body: Any) -> None:
    answers = [await post(http, json.dumps(body), kind) for kind in (SHORT, LONG)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].headers["content-type"] == SHORT
    assert answers[0].json()["results"] == answers[1].json()["results"]


@pytest.mark.parametrize("body", REFUSED)
async def test_both_ways_refuse_in_the_same_words(http: httpx.AsyncClient, body: str) -> None:
    short, long = [await post(http, body, kind) for kind in (SHORT, LONG)]
    assert short.status_code >= 400
    assert (short.status_code, short.json()) == (long.status_code, long.json())


async def test_json_is_read_in_every_encoding_that_it_may_have(http: httpx.AsyncClient) -> None:
    assert (await post(http, '{"items": [{"text": "a"}]}'.encode("utf-16"), SHORT)).is_success
