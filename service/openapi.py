"""``openapi.yaml``, generated from the app: ``python -m service.openapi [FILE]``."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from reward_model import atomic
from service.errors import (
    BodyTooLarge,
    DeadlinePassed,
    InternalError,
    MalformedRequest,
    QueueFull,
    ServiceError,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from service.schemas import ErrorBody

_ANSWERS: tuple[tuple[type[ServiceError], str], ...] = (
    (Unauthorized, "No key or a wrong one"),
    (UnknownModel, "No model of that name"),
    (BodyTooLarge, "The body is over the limit"),
    (MalformedRequest, "The schema is broken; the field is named"),
    (QueueFull, "The queue is full; Retry-After says when to come back"),
    (InternalError, "A fault of the service"),
    (Unavailable, "Loading, shutting down or broken"),
    (DeadlinePassed, "The deadline passed"),
)


def describe(app: FastAPI) -> None:
    """Give ``app`` its title, security schemes and the one error shape on every POST route."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="Sumzero scoring service",
        version=version("sumzero"),
        description="Reward model scores that do not depend on the batch.",
        routes=app.routes,
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= error.pop("$defs", {}) | {"ErrorBody": error}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "token": {
            "type": "apiKey",
            "in": "query",
            "name": "token",
            "description": "on the routes of other trainers only",
        },
    }
    for methods in document["paths"].values():
        for method, operation in methods.items():
            _add_errors(operation, post=method == "post")
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    return document


def _add_errors(operation: dict[str, Any], *, post: bool) -> None:
    other_trainer = "other trainers" in operation.get("tags", [])
    operation["security"] = [{}, {"bearer": []}, *([{"token": []}] if other_trainer else [])]
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for error, text in _ANSWERS if post else ((Unauthorized, "No key or a wrong one"),):
        answer: dict[str, Any] = {"description": text, "content": content}
        if error is QueueFull:
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
        operation["responses"][str(error.status)] = answer


def to_yaml() -> str:
    """The document of an app with every route, as it is checked in."""
    from service.app import create_app
    from service.embedded import EmbeddedScorer
    from service.metrics import Metrics
    from service.settings import ModelSettings, ServiceSettings

    settings = ServiceSettings(model=(ModelSettings(path=Path("."), name="model"),))
    app = create_app(EmbeddedScorer(settings, Metrics()), settings)
    return yaml.dump(app.openapi(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)


class _Plain(yaml.SafeDumper):
    """Repeats what is repeated, instead of anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    atomic.write_text(Path(sys.argv[1] if len(sys.argv) > 1 else "openapi.yaml"), to_yaml())
