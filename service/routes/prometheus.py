"""``/metrics``: beside ``/score``, or on a port of its own (``metrics_port``)."""

from fastapi import APIRouter, Response

from service.context import Context
from service.metrics import CONTENT_TYPE


def prometheus_router(context: Context) -> APIRouter:
    router = APIRouter(tags=["status"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        state = await context.scorer.readiness()
        context.metrics.ready.set(state.ready and not context.gate.closed)
        return Response(await context.metrics.page(), media_type=CONTENT_TYPE)

    return router
