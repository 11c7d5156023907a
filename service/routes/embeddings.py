"""``POST /v1/embeddings``: verl over SGLang's protocol. The "embedding" is the scalar reward."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.context import Context
from service.routes.classify import TextsOrIds, TokenUsage, texts_or_ids, usage
from service.schemas import ForeignRequest

PATH = "/v1/embeddings"


class EmbeddingsRequest(ForeignRequest):
    model: str | None = None
    input: TextsOrIds


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] = Field(description="one number: the raw score")


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: TokenUsage


def embeddings_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["other trainers"])

    @router.post(PATH, summary="verl over SGLang's protocol")
    async def embed(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        model = context.model_or_default(body.model)
        answer = await context.score(request, model, texts_or_ids(body.input))
        data = [
            Embedding(index=index, embedding=[score]) for index, score in enumerate(answer.scores())
        ]
        return EmbeddingsResponse(model=answer.model, data=data, usage=usage(answer))

    return router
