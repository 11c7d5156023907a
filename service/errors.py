"""What the service answers when it has no scores, as a tree. No failure is ever a number.

ServiceError             one JSON shape: {"error": {"type", "message", "details"}}
├── MalformedRequest     422  the schema alone; names the field
├── ItemsFailed          422  a protocol without null got an item that has no score
├── ItemsFailedForNow    503  the same, but worth another try
├── Unauthorized         401  no key or a wrong one
├── UnknownModel         404
├── BodyTooLarge         413
├── ClientGone           499  nobody reads it; for the log
├── QueueFull            429  with Retry-After, from the measured throughput
├── Unavailable          503  loading, draining or broken
│   └── VersionChanged   503  the model was updated meanwhile; the scoring path asks again
├── DeadlinePassed       504
└── InternalError        500  a fault of ours; the log has the traceback, the answer does not

All of them survive pickling, so that they cross from a Ray replica to its ingress.
"""

# The names say what happened, as in httpx and starlette.
# ruff: noqa: N818

import math
from typing import Any, ClassVar

from reward_model.errors import SumzeroError


class ServiceError(SumzeroError):
    """Base of every error with an HTTP status."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, details)
        self.message = message
        self.details = details or {}

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "type": self.type,
                "message": self.message,
                "details": self.details,
            }
        }


class MalformedRequest(ServiceError):
    status, type = 422, "malformed_request"


class ItemsFailed(ServiceError):
    status, type = 422, "items_failed"


class ItemsFailedForNow(ServiceError):
    status, type = 503, "items_failed_for_now"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class Unauthorized(ServiceError):
    status, type = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class UnknownModel(ServiceError):
    status, type = 404, "unknown_model"


class BodyTooLarge(ServiceError):
    status, type = 413, "body_too_large"


class ClientGone(ServiceError):
    status, type = 499, "client_gone"


class QueueFull(ServiceError):
    """The queue holds as many tokens as it may.

    ``details["retry_after"]`` is the time in seconds after which, at the measured throughput,
    this request would have found room.
    """

    status, type = 429, "queue_full"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self.details.get("retry_after", 1.0))))}


class Unavailable(ServiceError):
    status, type = 503, "unavailable"

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class VersionChanged(Unavailable):
    """The tokens were made for another version of the model."""


class DeadlinePassed(ServiceError):
    status, type = 504, "deadline_passed"


class InternalError(ServiceError):
    status, type = 500, "internal_error"
