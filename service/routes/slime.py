"""``POST /remote_rm``: slime's ``--rm-type remote_rm --rm-url``. The answer is a bare number.

``prompt`` is a conversation, or text. Text that holds one of the tokenizer's special tokens has
been through a chat template already and is taken as it is; other text is a turn of the user.
"""

from fastapi import APIRouter, Request

from reward_model.encode import Encoder
from service.context import Context
from service.inputs import Input, PromptResponse, Text
from service.schemas import ForeignMessage, ForeignRequest, Unicode

PATH = "/remote_rm"


class RemoteRmRequest(ForeignRequest):
    prompt: Unicode | list[ForeignMessage]
    response: Unicode


def slime_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["other trainers"])

    @router.post(PATH, summary="slime; ?model= chooses one of several")
    async def remote_rm(body: RemoteRmRequest, request: Request, model: str | None = None) -> float:
        served = context.model(model)
        answer = await context.score(request, served, [_input(body, served.encoder)])
        return answer.scores()[0]

    return router


def _input(body: RemoteRmRequest, encoder: Encoder) -> Input:
    if not isinstance(body.prompt, str):
        return PromptResponse([dict(turn) for turn in body.prompt], body.response)
    if any(token in body.prompt for token in encoder.tokenizer.all_special_tokens):
        return Text(body.prompt + body.response)
    return PromptResponse(body.prompt, body.response)
