"""The routes over a real scorer, without a network in between."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from reward_model.contract import RewardStats
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ServiceSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

OpenClient = Callable[..., httpx.AsyncClient]

PROMPT = [{"role": "user", "content": "Bread or cake?"}]
ANSWER = {"role": "assistant", "content": "Bread."}


def alone(model: RewardModel, *token_ids: list[int] | tuple[int, ...]) -> list[float]:
    return [score_token_ids(model, [ids], share_prefix=False)[0] for ids in token_ids]


async def ask(http: httpx.AsyncClient, *items: Any, **body: Any) -> dict[str, Any]:
    response = await http.post("/score", json={"items": items, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refused(http: httpx.AsyncClient, status: int, **body: Any) -> dict[str, Any]:
    response = await http.post("/score", json=body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"type", "message", "details"}
    return error


async def test_every_form_of_an_item_scores_as_the_model_does_alone(
    http: httpx.AsyncClient, model: RewardModel
) -> None:
    answer = await ask(
        http,
        {"prompt": PROMPT, "responses": ["Bread.", "Cake!"]},
        {"prompt": "Bread or cake?", "responses": ["Bread."]},
        {"messages": [*PROMPT, ANSWER]},
        {"text": "already templated<|im_end|>"},
        {"token_ids": [5, 6, 7]},
    )
    encoder = model.encoder
    bread = encoder.messages([*PROMPT, ANSWER]).token_ids
    cake = encoder.prompt_response(PROMPT, "Cake!").token_ids
    text = encoder.text("already templated<|im_end|>").token_ids
    wanted = alone(model, bread, cake, text, [5, 6, 7])
    scores = [result["scores"] for result in answer["results"]]
    assert scores == [[wanted[0], wanted[1]], [wanted[0]], [wanted[0]], [wanted[2]], [wanted[3]]]
    first = answer["results"][0]
    assert first["errors"] == [None, None]
    assert first["num_tokens"] == [len(bread), len(cake)]
    assert first["truncated"] == [False, False]
    assert answer["model"] == "tiny"
    assert answer["model_version"] == model.model_version
    assert answer["usage"]["tokens"] == 3 * len(bread) + len(cake) + len(text) + 3
    assert answer["usage"]["computed_tokens"] < answer["usage"]["tokens"]
    assert set(answer["timing_ms"]) == {"queue", "tokenize", "forward"}


async def test_the_model_is_chosen_by_name(
    http: httpx.AsyncClient, settings: ServiceSettings
) -> None:
    other = RewardModel.load(settings.model[1].path)
    answer = await ask(http, {"token_ids": [5, 6]}, model="other")
    assert answer["results"][0]["scores"] == alone(other, [5, 6])
    assert answer["model_version"] == other.model_version
    error = await refused(http, 404, model="nobody", items=[{"text": "a"}])
    assert error["type"] == "unknown_model"
    assert error["details"] == {"models": ["tiny", "other"]}


async def test_item_errors_leave_the_neighbours_and_the_status(
    http: httpx.AsyncClient, model: RewardModel
) -> None:
    answer = await ask(
        http,
        {"token_ids": [1, 2, 100_000]},
        {"token_ids": [-1]},
        {"token_ids": [1, 2]},
        {"text": ""},
        {"token_ids": [3] * 3000},
    )
    kinds = [r["errors"][0] and r["errors"][0]["type"] for r in answer["results"]]
    assert kinds == ["invalid_token_id", "invalid_token_id", None, "empty", "too_long"]
    assert answer["results"][2]["scores"] == alone(model, [1, 2])
    assert [r["scores"][0] for r in answer["results"] if r["errors"][0]] == [None] * 4


async def test_a_request_all_of_whose_items_failed_is_still_answered(
    http: httpx.AsyncClient, model: RewardModel
) -> None:
    answer = await ask(http, {"text": ""})
    assert answer["results"][0]["scores"] == [None]
    assert answer["model_version"] == model.model_version
    assert answer["usage"] == {"tokens": 0, "computed_tokens": 0}


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-2048, None)), ("right", slice(2048))])
async def test_truncation_is_asked_for_and_reported(
    http: httpx.AsyncClient, model: RewardModel, side: str, kept: slice
) -> None:
    ids = [n % 300 for n in range(3000)]
    result = (await ask(http, {"token_ids": ids}, truncation=side))["results"][0]
    assert result["truncated"] == [True]
    assert result["num_tokens"] == [2048]
    assert result["scores"] == alone(model, ids[kept])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [{"text": "a"}], "colour": 1}, "colour"),
        ({"items": [{"text": "a", "messages": [ANSWER]}]}, "items.0.text"),
        ({"items": [{"text": "a"}, {}]}, "items.1"),
        ({"items": [{"text": 3}]}, "items.0.text"),
        ({"items": [{"token_ids": []}]}, "items.0.token_ids"),
        ({"items": [{"token_ids": ["1"]}]}, "items.0.token_ids.0"),
        ({"items": [{"token_ids": [1.5]}]}, "items.0.token_ids.0"),
        ({"items": [{"prompt": "a", "responses": []}]}, "items.0.responses"),
        ({"items": [{"prompt": "a"}]}, "items.0.responses"),
        ({"items": [{"messages": [{"role": "user"}]}]}, "items.0.messages.0.content"),
        ({"items": [{"text": "a"}], "truncation": "middle"}, "truncation"),
        ({"items": [{"text": "a"}], "timeout_ms": 0}, "timeout_ms"),
        ({"items": [{"text": "a"}], "normalize": "yes"}, "normalize"),
        ({"items": [{"text": "a"}], "normalize": True}, "normalize"),
        ({"items": "text"}, "items"),
    ],
)
async def test_a_broken_schema_names_the_field(
    http: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    error = await refused(http, 422, **body)
    assert error["type"] == "malformed_request"
    assert error["details"]["fields"][0]["field"] == field
    assert error["message"].startswith(field)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"items": NaN}']
)
async def test_what_is_no_json_object_is_422(http: httpx.AsyncClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post("/score", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["error"]["type"] == "malformed_request"


async def test_half_a_surrogate_pair_is_422(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    content = rb'{"items": [{"text": "\ud800"}]}'
    response = await http.post("/score", content=content, headers=headers)
    assert response.status_code == 422
    assert response.json()["error"]["details"]["fields"][0]["field"] == "items.0.text"


async def test_the_answer_to_a_broken_schema_does_not_quote_the_text(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post("/score", json={"items": [{"text": ["secret words"]}]})
    assert "secret" not in response.text


async def test_normalize_uses_the_checkpoints_statistics(
    own_scorer: EmbeddedScorer, own_http: httpx.AsyncClient
) -> None:
    served = own_scorer.models()["tiny"]
    stats = RewardStats(mean=0.5, std=2.0, n=10, split="train")
    object.__setattr__(served, "contract", served.contract.model_copy(update={"stats": stats}))
    raw = (await ask(own_http, {"token_ids": [1, 2]}))["results"][0]["scores"][0]
    normal = (await ask(own_http, {"token_ids": [1, 2]}, normalize=True))["results"][0]["scores"][0]
    assert normal == (raw - 0.5) / 2.0


async def test_limits(open_client: OpenClient) -> None:
    async with open_client(max_items=3) as http:
        await ask(http, {"prompt": "a", "responses": ["b", "c", "d"]})
        two = {"prompt": "a", "responses": ["b", "c"]}
        error = await refused(http, 422, items=[two, two])
        assert error["details"]["fields"][0]["field"] == "items"


async def test_a_body_over_the_limit_is_413_announced_or_not(open_client: OpenClient) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100_000

    async with open_client(max_body_mib=1) as http:
        announced = await http.post("/score", content=b" " * 2_000_000)
        streamed = await http.post("/score", content=chunks())
    for response in (announced, streamed):
        assert response.status_code == 413
        assert response.json()["error"]["type"] == "body_too_large"


async def test_a_deadline_is_504(http: httpx.AsyncClient, scorer: EmbeddedScorer) -> None:
    items = [{"token_ids": [n, *range(300)] * 3} for n in range(50)]
    error = await refused(http, 504, items=items, timeout_ms=1)
    assert error["type"] == "deadline_passed"
    assert (await ask(http, {"token_ids": [1, 2]}))["results"][0]["errors"] == [None]


async def test_before_the_models_are_there(
    settings: ServiceSettings, open_client: OpenClient
) -> None:
    from service.app import create_app

    app = create_app(EmbeddedScorer(settings, Metrics()), settings)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        assert (await http.get("/health")).status_code == 200
        ready = await http.get("/ready")
        assert ready.status_code == 503
        assert ready.json() == {"ready": False, "reason": "loading", "models": {}}
        assert (await http.get("/v1/models")).json() == {"object": "list", "data": []}
        await refused(http, 503, items=[{"text": "a"}])


async def test_status_routes(http: httpx.AsyncClient, model: RewardModel) -> None:
    ready = (await http.get("/ready")).json()
    assert ready["ready"]
    assert ready["models"]["tiny"]["self_test_passed"] is True
    models = (await http.get("/v1/models")).json()["data"]
    assert [(m["id"], m["default"]) for m in models] == [("tiny", True), ("other", False)]
    assert models[0]["version"] == model.model_version
    assert models[0]["contract"]["max_length"] == 2048
    assert models[0]["details"]["scoring"] == "packed"


async def test_a_broken_replica_shows_in_ready_and_health(
    own_http: httpx.AsyncClient, own_scorer: EmbeddedScorer
) -> None:
    own_scorer.replica("tiny").broken = "model tiny no longer computes; restart the service"
    assert (await own_http.get("/health")).status_code == 503
    ready = await own_http.get("/ready")
    assert ready.status_code == 503
    assert "no longer computes" in ready.json()["reason"]
    assert "sumzero_ready 0.0" in (await own_http.get("/metrics")).text
    await refused(own_http, 503, items=[{"token_ids": [9, 9]}])


async def test_metrics_count_what_happened(own_http: httpx.AsyncClient) -> None:
    await ask(own_http, {"token_ids": [1, 2, 3]}, {"text": ""})
    await ask(own_http, {"token_ids": [1, 2, 3]})
    await own_http.get("/nowhere")
    text = (await own_http.get("/metrics")).text
    for line in (
        'sumzero_requests_total{route="/score",status="200"} 2.0',
        'sumzero_requests_total{route="unknown",status="404"} 1.0',
        'sumzero_item_errors_total{model="tiny",type="empty"} 1.0',
        'sumzero_items_total{model="tiny"} 3.0',
        'sumzero_tokens_total{model="tiny"} 6.0',
        'sumzero_computed_tokens_total{model="tiny"} 3.0',
        'sumzero_cache_hits_total{model="tiny"} 1.0',
        'sumzero_self_test_passed{model="tiny"} 1.0',
        'sumzero_queue_tokens{model="tiny"} 0.0',
        "sumzero_ready 1.0",
    ):
        assert line in text.splitlines(), line
    assert "sumzero_forward_seconds_bucket" in text
    assert 'sumzero_model_info{device="cpu",dtype="float32",model="tiny"' in text


async def test_concurrent_requests_score_as_alone(
    http: httpx.AsyncClient, model: RewardModel
) -> None:
    sequences = [[(n * 37 + place * 11) % 300 for place in range(1 + 13 * n)] for n in range(24)]
    answers = await asyncio.gather(*(ask(http, {"token_ids": ids}) for ids in sequences))
    scores = [answer["results"][0]["scores"][0] for answer in answers]
    assert scores == alone(model, *sequences)


async def test_unknown_paths_and_methods_have_the_one_shape(http: httpx.AsyncClient) -> None:
    missing = await http.get("/nowhere")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found")
    wrong = await http.get("/score")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "method_not_allowed")


async def test_a_fault_of_ours_is_500_in_the_one_shape_and_logged_without_text(
    http: httpx.AsyncClient,
    scorer: EmbeddedScorer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("secret words")

    monkeypatch.setattr(scorer, "score", broken)
    response = await http.post("/score", json={"items": [{"text": "a"}]})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal_error"
    records = str([record.__dict__ for record in caplog.records])
    assert "ZeroDivisionError" in records
    assert "secret" not in records


async def test_logs_hold_no_user_text_and_no_key(
    open_client: OpenClient, caplog: pytest.LogCaptureFixture
) -> None:
    from pydantic import SecretStr

    caplog.set_level(logging.DEBUG, logger="service")
    async with open_client(api_keys=(SecretStr("s3cret"),)) as http:
        await http.post("/get_reward?token=s3cret", json={"query": ["private words"]})
        await http.post("/score?token=s3cret", json={"items": [{"text": "private words"}]})
        headers = {"Authorization": "Bearer s3cret"}
        await http.post("/score", json={"items": [{"text": "private words"}]}, headers=headers)
    records = [record for record in caplog.records if record.name == "service.access"]
    assert [record.__dict__["fields"]["status"] for record in records] == [200, 401, 200]
    text = json.dumps([str(record.__dict__) for record in caplog.records])
    assert "private" not in text
    assert "s3cret" not in text
