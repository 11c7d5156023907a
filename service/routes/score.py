"""``POST /score``: the project's own endpoint."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from reward_model.contract import RewardStats
from service.context import Context
from service.errors import MalformedRequest
from service.inputs import Conversation, Input, PromptResponse, Text, TokenIds
from service.routes.straight import StraightRoute
from service.schemas import (
    Item,
    MessagesItem,
    PromptItem,
    ScoreRequest,
    ScoreResponse,
    TextItem,
)
from service.scorer import ItemFailure, Outcome, ServedModel
from service.scoring import Answer


def score_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["score"], route_class=StraightRoute)

    @router.post("/score", response_model=ScoreResponse, summary="Score responses")
    async def score(body: ScoreRequest, request: Request) -> Response:
        model = context.model(body.model)
        if body.normalize:
            _stats(model)  # refused before it is computed
        inputs = [list(inputs_of(item)) for item in body.items]
        answer = await context.score(
            request,
            model,
            [one for of_item in inputs for one in of_item],
            truncation=body.truncation,
            timeout=body.timeout_ms / 1000 if body.timeout_ms else None,
        )
        stats = _stats(answer.served) if body.normalize else None
        counts = [len(of_item) for of_item in inputs]
        content = to_json(_body(answer, counts, stats, request.state.request_id))
        return Response(content, media_type="application/json")

    return router


def inputs_of(item: Item) -> Iterator[Input]:
    """What one item asks to have scored: one input per score."""
    match item:
        case PromptItem(prompt=prompt, responses=responses):
            turns = prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]
            yield from (PromptResponse(turns, response) for response in responses)
        case MessagesItem(messages=messages):
            yield Conversation([dict(message) for message in messages])
        case TextItem(text=text):
            yield Text(text)
        case _:
            yield TokenIds(item.token_ids)


def _stats(model: ServedModel) -> RewardStats:
    if model.contract.stats is None:
        raise MalformedRequest(
            f"normalize: model {model.name} has no statistics",
            {"fields": [{"field": "normalize", "message": "the model has no statistics"}]},
        )
    return model.contract.stats


def _body(
    answer: Answer, counts: list[int], stats: RewardStats | None, request_id: str
) -> dict[str, object]:
    return {
        "id": request_id,
        "model": answer.model,
        "model_version": answer.model_version,
        "results": list(results(answer, counts, stats)),
        "usage": {"tokens": sum(answer.num_tokens), "computed_tokens": answer.computed_tokens},
        "timing_ms": {
            "queue": round(1000 * answer.queue_seconds, 3),
            "tokenize": round(1000 * answer.tokenize_seconds, 3),
            "forward": round(1000 * answer.forward_seconds, 3),
        },
    }


def results(
    answer: Answer, counts: list[int], stats: RewardStats | None
) -> Iterator[dict[str, object]]:
    """One result per item, of ``counts[i]`` scores each."""
    start = 0
    for count in counts:
        part = slice(start, start + count)
        outcomes = answer.outcomes[part]
        yield {
            "scores": [_score(outcome, stats) for outcome in outcomes],
            "errors": [_error(outcome) for outcome in outcomes],
            "num_tokens": answer.num_tokens[part],
            "truncated": answer.truncated[part],
        }
        start += count


def _score(outcome: Outcome, stats: RewardStats | None) -> float | None:
    if isinstance(outcome, ItemFailure):
        return None
    return outcome if stats is None else (outcome - stats.mean) / stats.std


def _error(outcome: Outcome) -> dict[str, str] | None:
    if isinstance(outcome, ItemFailure):
        return {"type": outcome.type, "message": outcome.message}
    return None
