"""``POST /get_reward``: OpenRLHF's ``--reward.remote_url``, and the paper's reference trainer.

``query`` holds prompt + response with the template's special tokens. ``prompts`` and ``labels`` are
ignored. With several URLs OpenRLHF may send empty lists: they are answered with empty lists.
"""

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from service.context import Context
from service.inputs import Text
from service.schemas import ForeignRequest, Unicode

PATH = "/get_reward"


class GetRewardRequest(ForeignRequest):
    query: list[Unicode] = Field(description="prompt + response, special tokens included")


class GetRewardResponse(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def openrlhf_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["other trainers"])

    @router.post(PATH, summary="OpenRLHF; ?model= chooses one of several")
    async def get_reward(
        body: GetRewardRequest, request: Request, model: str | None = None
    ) -> GetRewardResponse:
        inputs = [Text(text) for text in body.query]
        answer = await context.score(request, context.model(model), inputs)
        scores = answer.scores()
        tokens = [float(count) for count in answer.num_tokens]
        return GetRewardResponse(
            rewards=scores, scores=scores, extra_logs={"reward_tokens": tokens}
        )

    return router
