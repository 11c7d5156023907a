"""``POST /v1/trace``: the score a decoder would give after every token of a response.

It is what the sequence up to that token scores by itself, with the same bits: each is one sequence
of an ordinary batch, and all of them share what they have in common.
"""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from reward_model.encode import Encoder
from service.context import Context
from service.errors import ItemsFailed, MalformedRequest, VersionChanged
from service.inputs import PromptResponse, TokenIds, encode_all
from service.schemas import ChatMessage, Unicode
from service.schemas import Request as StrictRequest
from service.scorer import ItemFailure, ServedModel

PATH = "/v1/trace"
MAX_POINTS = 256
"""A longer response is shown at evenly spaced tokens, the last one among them."""


class TraceRequest(StrictRequest):
    model: str | None = Field(None, description="the default model otherwise")
    prompt: Unicode | list[ChatMessage]
    response: Unicode


class TracePoint(BaseModel):
    position: int = Field(description="of the token, counted from the response's first")
    token: str
    score: float = Field(description="of everything up to this token")


class TraceResponse(BaseModel):
    id: str
    model: str
    model_version: str
    num_tokens: int = Field(description="of the whole sequence")
    points: list[TracePoint]


def trace_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["score"])

    @router.post(PATH, summary="The score after every token of a response; decoders only")
    async def trace(body: TraceRequest, request: Request) -> TraceResponse:
        model = context.model(body.model)
        _check_decoder(model)
        ids, start = await context.path.run(_tokens, model, body)
        ends = _thinned(start, len(ids), min(MAX_POINTS, context.settings.max_items))
        inputs = [TokenIds(ids[: end + 1]) for end in ends]
        answer = await context.score(request, model, inputs, truncation="error")
        if answer.served.version != model.version:
            raise VersionChanged(f"model {model.name} was updated; try again")
        return TraceResponse(
            id=request.state.request_id,
            model=answer.model,
            model_version=answer.model_version,
            num_tokens=len(ids),
            points=[
                TracePoint(position=end - start, token=_shown(model.encoder, ids[end]), score=score)
                for end, score in zip(ends, answer.scores(), strict=True)
            ],
        )

    return router


def _check_decoder(model: ServedModel) -> None:
    if model.contract.pooling not in ("last", "last_non_pad"):
        message = f"model {model.name} reads every token before it scores: it has no score between"
        raise MalformedRequest(
            f"model: {message}", {"fields": [{"field": "model", "message": message}]}
        )


def _tokens(model: ServedModel, body: TraceRequest) -> tuple[tuple[int, ...], int]:
    """The token ids, and the place of the first that an empty response would not have."""
    prompt = body.prompt if isinstance(body.prompt, str) else [dict(turn) for turn in body.prompt]
    inputs = [PromptResponse(prompt, body.response), PromptResponse(prompt, "")]
    whole, empty = encode_all(inputs, model.encoder, "error")
    if isinstance(whole, ItemFailure):
        raise ItemsFailed(whole.message, {"index": 0, "type": whole.type})
    ids = whole.token_ids
    others = () if isinstance(empty, ItemFailure) else empty.token_ids
    start = 0
    while start < min(len(ids) - 1, len(others)) and ids[start] == others[start]:
        start += 1
    return ids, start


def _thinned(start: int, stop: int, count: int) -> list[int]:
    """At most ``count`` places of ``start..stop-1``, evenly spaced, with the last one."""
    step = -(-(stop - start) // count)
    return list(range(stop - 1, start - 1, -step))[::-1]


def _shown(encoder: Encoder, token: int) -> str:
    return str(encoder.tokenizer.decode([token]))
