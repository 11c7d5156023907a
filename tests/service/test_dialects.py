"""Each foreign protocol as its client speaks it, with that client's habits."""

import math
from typing import Any

import httpx
import pytest

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.embedded import EmbeddedScorer
from service.scorer import ItemFailure, Scored

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUERY = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nBread.<|im_end|>\n"
OTHER = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nCake, then.<|im_end|>\n"
PROMPT = [{"role": "user", "content": "Hi"}]
MESSAGES = [*PROMPT, {"role": "assistant", "content": "Bread."}]


@pytest.fixture(scope="module")
def wanted(model: RewardModel) -> dict[str, float]:
    """The score of each text, alone."""
    return {text: _alone(model, model.encoder.text(text).token_ids) for text in (QUERY, OTHER)}


def _alone(model: RewardModel, ids: tuple[int, ...]) -> float:
    return score_token_ids(model, [ids], share_prefix=False)[0]


async def ask(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_openrlhf(http: httpx.AsyncClient, wanted: dict[str, float]) -> None:
    answer = await ask(http, "/get_reward", query=[QUERY], prompts=["Hi"], labels=[None])
    assert answer["rewards"] == answer["scores"] == [wanted[QUERY]]
    assert all(isinstance(x, float) for values in answer["extra_logs"].values() for x in values)
    assert (await ask(http, "/get_reward", query=[QUERY, OTHER]))["rewards"] == [
        wanted[QUERY],
        wanted[OTHER],
    ]


async def test_openrlhf_may_send_empty_lists(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "/get_reward", query=[], prompts=[], labels=[])
    assert answer["rewards"] == []
    assert answer["scores"] == []


async def test_openrlhf_chooses_among_models_in_its_url(http: httpx.AsyncClient) -> None:
    default = await ask(http, "/get_reward", query=[QUERY])
    other = await ask(http, "/get_reward?model=other", query=[QUERY])
    assert default["rewards"] != other["rewards"]
    assert (await http.post("/get_reward?model=none", json={"query": []})).status_code == 404


@pytest.mark.parametrize("prompt", [PROMPT, "Hi", QUERY.removesuffix("Bread.<|im_end|>\n")])
async def test_slime(
    http: httpx.AsyncClient, model: RewardModel, prompt: str | list[dict[str, str]]
) -> None:
    answer = await ask(http, "/remote_rm", prompt=prompt, response="Bread.", label="x")
    sequence = model.encoder.messages(MESSAGES).token_ids
    if isinstance(prompt, str) and prompt != "Hi":
        sequence = model.encoder.text(prompt + "Bread.").token_ids
    assert answer == _alone(model, sequence)


async def test_llama_factory(http: httpx.AsyncClient, wanted: dict[str, float]) -> None:
    answer = await ask(
        http,
        "/v1/score/evaluation",
        model="/its/own/path",
        messages=[QUERY, OTHER],
        max_length=1,
    )
    assert answer.pop("id")
    assert answer == {
        "object": "score.evaluation",
        "model": "tiny",
        "scores": [wanted[QUERY], wanted[OTHER]],
    }


async def test_vllm_classify_in_all_its_forms(
    http: httpx.AsyncClient, model: RewardModel, wanted: dict[str, float]
) -> None:
    ids = list(model.encoder.text(QUERY).token_ids)
    common = {"model": "/its/own/path", "use_activation": False, "add_special_tokens": True}
    one = [wanted[QUERY]]
    for given, scores in (
        (QUERY, one),
        ([QUERY, OTHER], [wanted[QUERY], wanted[OTHER]]),
        (ids, one),
        ([ids, ids], one * 2),
    ):
        answer = await ask(http, "/classify", input=given, **common)
        assert [entry["probs"][-1] for entry in answer["data"]] == scores
        assert [entry["index"] for entry in answer["data"]] == list(range(len(scores)))
        assert {entry["num_classes"] for entry in answer["data"]} == {1}
        assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert answer["usage"]["prompt_tokens"] == 2 * len(ids)
    answer = await ask(http, "/classify", messages=MESSAGES, **common)
    assert answer["data"][0]["probs"] == [_alone(model, model.encoder.messages(MESSAGES).token_ids)]


async def test_vllm_classify_is_raw_unless_a_sigmoid_is_asked_for(
    http: httpx.AsyncClient, wanted: dict[str, float]
) -> None:
    raw = await ask(http, "/classify", input=QUERY)
    squashed = await ask(http, "/classify", input=QUERY, use_activation=True)
    assert raw["data"][0]["probs"] == [wanted[QUERY]]
    assert squashed["data"][0]["probs"] == [pytest.approx(1 / (1 + math.exp(-wanted[QUERY])))]


async def test_sglang_classify_is_told_apart_by_text(
    http: httpx.AsyncClient, wanted: dict[str, float]
) -> None:
    answer = await ask(http, "/classify", model="x", text=[QUERY, OTHER])
    assert [entry["embedding"] for entry in answer] == [[wanted[QUERY]], [wanted[OTHER]]]
    assert answer[0]["meta_info"]["prompt_tokens"] > 0
    assert (await ask(http, "/classify", text=QUERY))["embedding"] == [wanted[QUERY]]


async def test_sglang_embeddings(http: httpx.AsyncClient, wanted: dict[str, float]) -> None:
    answer = await ask(http, "/v1/embeddings", model="/its/own/path", input=QUERY)
    assert answer["data"][-1]["embedding"][-1] == wanted[QUERY]
    answer = await ask(http, "/v1/embeddings", input=[QUERY, OTHER])
    assert [entry["embedding"] for entry in answer["data"]] == [[wanted[QUERY]], [wanted[OTHER]]]


FAILING: list[tuple[str, dict[str, Any]]] = [
    ("/get_reward", {"query": ["fine", ""]}),
    ("/v1/score/evaluation", {"messages": ["fine", ""]}),
    ("/classify", {"input": ["fine", ""]}),
    ("/classify", {"text": ["fine", ""]}),
    ("/v1/embeddings", {"input": ["fine", ""]}),
]


@pytest.mark.parametrize(("path", "body"), FAILING)
async def test_a_failed_item_fails_the_request_and_is_named(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["type"] == "items_failed"
    assert error["details"] == {"index": 1, "type": "empty"}


@pytest.mark.parametrize(("path", "body"), FAILING)
async def test_what_is_worth_another_try_is_503(
    http: httpx.AsyncClient,
    scorer: EmbeddedScorer,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    async def no_memory(model: str, sequences: list[Any], **options: Any) -> Scored:
        failure = ItemFailure("out_of_memory", "not enough memory for this sequence")
        return Scored((failure,) * len(sequences), "sha256:0", 0)

    monkeypatch.setattr(scorer, "score", no_memory)
    response = await http.post(path, json=body)
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "items_failed_for_now"
    assert response.json()["error"]["details"]["index"] == 0


async def test_truncation_is_a_setting_of_the_model(
    http: httpx.AsyncClient, own_scorer: EmbeddedScorer, own_http: httpx.AsyncClient
) -> None:
    long = {"query": ["bread " * 5000]}
    refused = await http.post("/get_reward", json=long)
    assert refused.status_code == 422
    assert refused.json()["error"]["details"]["type"] == "too_long"
    object.__setattr__(own_scorer.models()["tiny"], "truncation", "left")
    assert len((await ask(own_http, "/get_reward", **long))["rewards"]) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {}),
        ("/get_reward", {"query": "text"}),
        ("/get_reward", {"query": [3]}),
        ("/remote_rm", {"prompt": "a"}),
        ("/remote_rm", {"prompt": [{"role": "user"}], "response": "b"}),
        ("/v1/score/evaluation", {"messages": [MESSAGES]}),
        ("/classify", {}),
        ("/classify", {"input": "a", "messages": MESSAGES}),
        ("/classify", {"input": [[1], "a"]}),
        ("/classify", {"text": 3}),
        ("/v1/embeddings", {"input": None}),
    ],
)
async def test_a_broken_schema_is_422_in_the_one_shape(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["type"] == "malformed_request"
    assert error["details"]["fields"]
