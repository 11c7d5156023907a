"""The web app over any :class:`service.scorer.Scorer`: embedded here, or replicas on Ray Serve."""

from fastapi import FastAPI
from pydantic import SecretStr

from service.access import Access
from service.answers import add_error_answers
from service.auth import Authentication
from service.body_limit import BodyLimit
from service.context import Context
from service.gate import Gate, GateKeeper
from service.metrics import Metrics
from service.openapi import describe
from service.routes import classify, embeddings, llama_factory, openrlhf, slime
from service.routes.classify import classify_router
from service.routes.embeddings import embeddings_router
from service.routes.llama_factory import llama_factory_router
from service.routes.openrlhf import openrlhf_router
from service.routes.page import page_router
from service.routes.prometheus import prometheus_router
from service.routes.score import score_router
from service.routes.slime import slime_router
from service.routes.status import status_router
from service.routes.trace import trace_router
from service.scorer import Scorer
from service.scoring import ScoringPath
from service.settings import ServiceSettings
from service.telemetry import Tracing, tracer_provider

ROUTERS = (
    score_router,
    trace_router,
    openrlhf_router,
    slime_router,
    llama_factory_router,
    classify_router,
    embeddings_router,
    status_router,
    page_router,
)

COMPATIBILITY_PATHS = frozenset(
    {openrlhf.PATH, slime.PATH, llama_factory.PATH, classify.PATH, embeddings.PATH}
)
"""Routes of other trainers' protocols, which can send a key only as ``?token=``."""


def create_app(
    scorer: Scorer,
    settings: ServiceSettings,
    *,
    metrics: Metrics | None = None,
    gate: Gate | None = None,
) -> FastAPI:
    """Build the app.

    Args:
        scorer: computes the scores; loaded and closed by whoever made it.
        settings: limits, keys and time-outs; its model list is not read here.
        metrics: shared with the scorer, so that ``/metrics`` shows both.
        gate: closed by whoever ends the process; requests inside are still answered.
    """
    metrics, gate = metrics or Metrics(), gate or Gate()
    context = Context(scorer, ScoringPath(scorer, metrics), metrics, gate, settings)
    app = FastAPI(docs_url=None, redoc_url=None, strict_content_type=False)
    for router in ROUTERS:
        app.include_router(router(context))
    if settings.metrics_port is None:
        app.include_router(prometheus_router(context))
    add_error_answers(app)
    describe(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_mib << 20)
    app.add_middleware(GateKeeper, gate=gate, max_requests=settings.max_requests)
    app.add_middleware(
        Authentication, keys=_plain(settings.api_keys), token_paths=COMPATIBILITY_PATHS
    )
    if settings.telemetry:
        app.add_middleware(Tracing, provider=tracer_provider())
    app.add_middleware(Access, metrics=metrics)
    return app


def create_metrics_app(
    scorer: Scorer, settings: ServiceSettings, *, metrics: Metrics, gate: Gate
) -> FastAPI:
    """``/metrics`` and nothing else, without keys; ``create_app`` leaves it out then."""
    context = Context(scorer, ScoringPath(scorer, metrics), metrics, gate, settings)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(prometheus_router(context))
    add_error_answers(app)
    return app


def _plain(keys: tuple[SecretStr, ...]) -> list[str]:
    return [key.get_secret_value() for key in keys]
