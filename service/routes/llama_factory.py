"""``POST /v1/score/evaluation``: LLaMA-Factory's ``reward_model_type: api``.

``messages`` are texts, prompt + response with the template's special tokens; a whole batch in one
request. ``max_length`` is ignored: the contract's length and the model's ``truncation`` decide.
"""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.context import Context
from service.inputs import Text
from service.schemas import ForeignRequest, Unicode

PATH = "/v1/score/evaluation"


class EvaluationRequest(ForeignRequest):
    model: str | None = None
    messages: list[Unicode]


class EvaluationResponse(BaseModel):
    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def llama_factory_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["other trainers"])

    @router.post(PATH, summary="LLaMA-Factory")
    async def evaluate(body: EvaluationRequest, request: Request) -> EvaluationResponse:
        model = context.model_or_default(body.model)
        answer = await context.score(request, model, [Text(text) for text in body.messages])
        return EvaluationResponse(
            id=request.state.request_id, model=answer.model, scores=answer.scores()
        )

    return router
