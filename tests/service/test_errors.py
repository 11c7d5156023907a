"""One shape, the right status, and a safe way through a pickle."""

import pickle

import pytest

from service import errors
from service.errors import QueueFull, ServiceError

EVERY = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ServiceError) and kind is not ServiceError
]


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_its_shape_and_survives_pickling(kind: type[ServiceError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what happened", {"index": 3})))
    assert type(error) is kind
    assert str(error) == "what happened"
    assert error.body() == {
        "error": {"type": kind.type, "message": "what happened", "details": {"index": 3}}
    }


def test_statuses_are_those_of_the_protocol() -> None:
    assert {kind.__name__: kind.status for kind in EVERY} == {
        "MalformedRequest": 422,
        "ItemsFailed": 422,
        "ItemsFailedForNow": 503,
        "Unauthorized": 401,
        "UnknownModel": 404,
        "BodyTooLarge": 413,
        "ClientGone": 499,
        "QueueFull": 429,
        "Unavailable": 503,
        "DeadlinePassed": 504,
        "InternalError": 500,
        "VersionChanged": 503,
    }


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.2, "2"), (30.0, "30")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: str) -> None:
    assert QueueFull("full", {"retry_after": seconds}).headers == {"Retry-After": header}
