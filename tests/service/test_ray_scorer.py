"""What the ingress on Ray Serve does when a replica does not simply answer.

The replicas are played by a fake: their faults cannot be had on demand from real ones. A real Ray,
and a replica killed under load, are in ``tests/integration/test_ray_serve.py``.
"""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from reward_model.model import RewardModel
from service.errors import (
    DeadlinePassed,
    InternalError,
    QueueFull,
    UnknownModel,
    VersionChanged,
)
from service.ray_scorer import EncodingChanged, RayScorer, encoding_version
from service.scorer import Scored, ServedModel
from tests.checkpoints import tiny_checkpoint

SCORED = Scored(outcomes=(0.5,), model_version="sha256:1", computed_tokens=3)


class Response:
    """An awaitable that Ray's handle would have returned."""

    def __init__(self, make: Callable[[], Any], seconds: float = 0.0) -> None:
        self._make = make
        self._seconds = seconds
        self.cancelled = False

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        await asyncio.sleep(self._seconds)
        return self.result()

    def result(self) -> Any:
        answer = self._make()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.calls: list[tuple[Any, ...]] = []

    def remote(self, *arguments: Any) -> Response:
        self.calls.append(arguments)
        return Response(self._make)


class Handle:
    """A handle to a replica that answers ``score`` with ``answers``, one after another."""

    def __init__(self, served: ServedModel, *answers: Any) -> None:
        left = list(answers)
        self.encoding = "first"
        self.score = Method(lambda: left.pop(0))
        self.describe = Method(lambda: (served, self.encoding))
        self.readiness = Method(lambda: ActorDiedError())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    path: Path = tiny_checkpoint(tmp_path_factory.mktemp("model") / "m")
    model = RewardModel.load(path)
    return ServedModel("m", SCORED.model_version, model.contract, model.encoder)


def scorer(handle: Handle) -> RayScorer:
    handles: Any = {"m": handle}
    made = RayScorer(handles)
    made.load()
    return made


def task_error(cause: Exception) -> Exception:
    error: Exception = RayTaskError("score", "traceback", cause).as_instanceof_cause()
    return error


async def test_what_a_dead_replica_held_is_asked_again(served: ServedModel) -> None:
    handle = Handle(served, ActorDiedError(), ActorDiedError(), SCORED)
    assert await scorer(handle).score("m", [[1, 2, 3]], timeout=30) == SCORED
    assert len(handle.score.calls) == 3


async def test_no_replica_within_the_deadline(served: ServedModel) -> None:
    handle = Handle(served, *[ActorDiedError()] * 1000)
    with pytest.raises(DeadlinePassed):
        await scorer(handle).score("m", [[1]], timeout=0.5)


async def test_a_client_that_goes_away_frees_its_place(served: ServedModel) -> None:
    handle = Handle(served, SCORED)
    responses: list[Response] = []

    def remote(*_: Any) -> Response:
        responses.append(Response(lambda: SCORED, seconds=60))
        return responses[-1]

    handle.score.remote = remote  # type: ignore[method-assign]
    scoring = asyncio.create_task(scorer(handle).score("m", [[1]], timeout=30))
    await asyncio.sleep(0.05)
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    assert [response.cancelled for response in responses] == [True]


async def test_errors_of_the_service_keep_their_class_and_details(served: ServedModel) -> None:
    handle = Handle(served, task_error(QueueFull("full", {"retry_after": 7.5})))
    with pytest.raises(QueueFull) as caught:
        await scorer(handle).score("m", [[1]], timeout=30)
    assert type(caught.value) is QueueFull
    assert caught.value.headers == {"Retry-After": "8"}


async def test_the_text_of_a_fault_stays_in_the_replica(served: ServedModel) -> None:
    handle = Handle(served, task_error(ValueError("what the user wrote")))
    with pytest.raises(InternalError) as caught:
        await scorer(handle).score("m", [[1]], timeout=30)
    assert "what the user wrote" not in str(caught.value)


async def test_tokens_of_another_version_are_made_anew(served: ServedModel) -> None:
    handle = Handle(served, task_error(EncodingChanged("updated")), SCORED)
    ray_scorer = scorer(handle)
    handle.encoding = "second"
    with pytest.raises(VersionChanged):  # upon which the scoring path tokenizes anew
        await ray_scorer.score("m", [[1]], timeout=30)
    assert await ray_scorer.score("m", [[1]], timeout=30) == SCORED
    assert [call[2] for call in handle.score.calls] == ["first", "second"]


async def test_unknown_model(served: ServedModel) -> None:
    with pytest.raises(UnknownModel):
        await scorer(Handle(served)).score("other", [[1]], timeout=30)


async def test_not_ready_without_a_replica(served: ServedModel) -> None:
    readiness = await scorer(Handle(served)).readiness()
    assert not readiness.ready
    assert "m" in readiness.reason


def test_what_the_ingress_gets_survives_pickling(served: ServedModel) -> None:
    copy: ServedModel = pickle.loads(pickle.dumps(served))
    assert encoding_version(copy) == encoding_version(served)
    assert copy.encoder.prompt_response("a", "b") == served.encoder.prompt_response("a", "b")


def test_another_template_is_another_encoding(served: ServedModel) -> None:
    copy: ServedModel = pickle.loads(pickle.dumps(served))
    copy.encoder.tokenizer.chat_template = "{{ messages }}"
    assert encoding_version(copy) != encoding_version(served)
