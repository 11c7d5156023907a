"""``POST /classify``: vLLM's dialect (verl) and SGLang's, told apart by ``text``.

The score is raw; ``use_activation: true`` asks for its sigmoid. ``add_special_tokens`` is ignored:
the contract decides how many BOS a sequence has, whatever the flag says.
"""

import math
import time
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from service.context import Context
from service.inputs import Conversation, Input, Text, TokenIds
from service.schemas import ForeignMessage, ForeignRequest, Unicode
from service.scoring import Answer

PATH = "/classify"

TextsOrIds = Unicode | list[Unicode] | list[int] | list[list[int]]
"""One text, several, the token ids of one sequence, or those of several."""


class VllmRequest(ForeignRequest):
    model: str | None = None
    input: TextsOrIds | None = None
    messages: list[ForeignMessage] | None = None
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self


class SglangRequest(ForeignRequest):
    model: str | None = None
    text: Unicode | list[Unicode]


class VllmClass(BaseModel):
    index: int
    label: str = "LABEL_0"
    probs: list[float] = Field(description="the raw score; its sigmoid with use_activation")
    num_classes: Literal[1] = 1


class TokenUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0


class VllmResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[VllmClass]
    usage: TokenUsage


class SglangScore(BaseModel):
    embedding: list[float] = Field(description="one number: the raw score")
    meta_info: dict[str, Any]


def _dialect(body: Any) -> str:
    if isinstance(body, dict):
        return "sglang" if "text" in body else "vllm"
    return "sglang" if isinstance(body, SglangRequest) else "vllm"


ClassifyRequest = Annotated[
    Annotated[VllmRequest, Tag("vllm")] | Annotated[SglangRequest, Tag("sglang")],
    Discriminator(_dialect),
]


def classify_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["other trainers"])

    @router.post(PATH, summary="verl over vLLM's protocol; SGLang clients")
    async def classify(
        body: Annotated[ClassifyRequest, Body()], request: Request
    ) -> VllmResponse | list[SglangScore] | SglangScore:
        model = context.model_or_default(body.model)
        answer = await context.score(request, model, _inputs(body))
        if isinstance(body, VllmRequest):
            return _as_vllm(answer, request.state.request_id, sigmoid=bool(body.use_activation))
        scores = _as_sglang(answer, request.state.request_id)
        return scores[0] if isinstance(body.text, str) else scores

    return router


def texts_or_ids(value: TextsOrIds) -> list[Input]:
    """One input per text or per sequence of token ids."""
    if isinstance(value, str):
        return [Text(value)]
    ids = [one for one in value if isinstance(one, int)]
    if ids:
        return [TokenIds(ids)]
    several = [one for one in value if not isinstance(one, int)]
    return [Text(one) if isinstance(one, str) else TokenIds(one) for one in several]


def usage(answer: Answer) -> TokenUsage:
    tokens = sum(answer.num_tokens)
    return TokenUsage(prompt_tokens=tokens, total_tokens=tokens)


def _inputs(body: VllmRequest | SglangRequest) -> list[Input]:
    if isinstance(body, SglangRequest):
        return texts_or_ids(body.text)
    if body.messages is not None:
        return [Conversation([dict(message) for message in body.messages])]
    return texts_or_ids(body.input or "")


def _as_vllm(answer: Answer, request_id: str, *, sigmoid: bool) -> VllmResponse:
    scores = [_sigmoid(score) if sigmoid else score for score in answer.scores()]
    return VllmResponse(
        id=f"classify-{request_id}",
        created=int(time.time()),
        model=answer.model,
        data=[VllmClass(index=index, probs=[score]) for index, score in enumerate(scores)],
        usage=usage(answer),
    )


def _as_sglang(answer: Answer, request_id: str) -> list[SglangScore]:
    return [
        SglangScore(
            embedding=[score],
            meta_info={"id": f"{request_id}-{index}", "prompt_tokens": tokens},
        )
        for index, (score, tokens) in enumerate(
            zip(answer.scores(), answer.num_tokens, strict=True)
        )
    ]


def _sigmoid(score: float) -> float:
    """σ(score), without overflow."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))
