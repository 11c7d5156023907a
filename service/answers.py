"""Every error as its one JSON shape."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from service.errors import BodyTooLarge, MalformedRequest, ServiceError

MAX_REPORTED = 10
"""Fields named in one answer."""

_TYPES = {404: "not_found", 405: "method_not_allowed"}


def error_response(error: ServiceError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


def add_error_answers(app: FastAPI) -> None:
    """Answer with :class:`ServiceError` shapes whatever a route or the framework raises."""

    @app.exception_handler(ServiceError)
    async def _own(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _schema(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(explain_schema(error.errors()))

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:
            return error_response(MalformedRequest("body: not JSON in UTF-8"))
        if error.status_code == 413:
            return error_response(BodyTooLarge(str(error.detail)))
        kind = _TYPES.get(error.status_code, "http_error")
        body = {"error": {"type": kind, "message": str(error.detail), "details": {}}}
        return JSONResponse(body, error.status_code, error.headers)


def explain_schema(errors: Sequence[Any]) -> MalformedRequest:
    """Name the fields that break the schema; never quote their contents."""
    fields = [
        {"field": _field(error), "message": _message(error)} for error in errors[:MAX_REPORTED]
    ]
    first = fields[0]
    return MalformedRequest(f"{first['field']}: {first['message']}", {"fields": fields})


def _message(error: Any) -> str:
    if error["type"] in ("model_attributes_type", "missing") and error["loc"] == ("body",):
        return "expected a JSON object, sent with Content-Type: application/json"
    if error["type"] == "json_invalid":
        return "not valid JSON"
    return str(error["msg"]).removeprefix("Value error, ")


def _field(error: Any) -> str:
    """``items.0.responses``: without "body", and without the form a union adds after an index."""
    if error["type"] == "json_invalid":
        return "body"
    parts = [str(part) for part in error["loc"] if part != "body"]
    if parts[:1] == ["items"] and len(parts) > 3:
        del parts[2]
    return ".".join(parts) or "body"
