"""``/health``, ``/ready``, ``/v1/models``: what runs here, and does it run."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from service.context import Context
from service.schemas import Health, ModelBody, ModelList, ReadinessBody
from service.scorer import ServedModel


def status_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/health", summary="The process lives; 503 asks for a restart")
    async def health(response: Response) -> Health:
        broken = (await context.scorer.readiness()).broken
        response.status_code = 503 if broken else 200
        return Health(status="broken" if broken else "alive")

    @router.get("/ready", response_model=ReadinessBody, summary="Scores can be had now")
    async def ready() -> JSONResponse:
        state = await context.scorer.readiness()
        is_ready = state.ready and not context.gate.closed
        reason = "shutting down" if context.gate.closed else state.reason
        models = {name: dict(model) for name, model in state.models.items()}
        body = ReadinessBody(ready=is_ready, reason=reason, models=models)
        return JSONResponse(body.model_dump(), 200 if is_ready else 503)

    @router.get("/v1/models", summary="The served models, the default one first")
    async def models() -> ModelList:
        served = list(context.scorer.models().values())
        return ModelList(data=[_model_body(m, default=m is served[0]) for m in served])

    return router


def _model_body(model: ServedModel, *, default: bool) -> ModelBody:
    return ModelBody(
        id=model.name,
        default=default,
        version=model.version,
        contract=model.contract.model_dump(mode="json", by_alias=True),
        details={"truncation": model.truncation, **model.details},
    )
