"""What every route needs: the scoring path, the served models, the limits."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from reward_model.encode import Truncation
from service.errors import ClientGone, MalformedRequest, Unavailable, UnknownModel
from service.gate import Gate
from service.inputs import Input
from service.metrics import Metrics
from service.scorer import Scorer, ServedModel
from service.scoring import Answer, ScoringPath
from service.settings import ServiceSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to each router when the app is built."""

    scorer: Scorer
    path: ScoringPath
    metrics: Metrics
    gate: Gate
    settings: ServiceSettings

    def model(self, name: str | None) -> ServedModel:
        """The model of that name; the default one for no name.

        Raises:
            UnknownModel, Unavailable
        """
        models = self._models()
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            raise UnknownModel(f"no model named {name!r}", {"models": list(models)})
        return models[name]

    def model_or_default(self, name: str | None) -> ServedModel:
        """For protocols whose clients always send a name of their own."""
        models = self._models()
        return models[name] if name in models else next(iter(models.values()))

    async def score(
        self,
        request: Request,
        model: ServedModel,
        inputs: Sequence[Input],
        *,
        truncation: Truncation | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Score ``inputs`` for ``request``; when its client goes away, its place is freed."""
        self._check_count(len(inputs))
        scoring = self.path.score(
            model,
            inputs,
            truncation=truncation or model.truncation,
            timeout=timeout or self.settings.timeout,
        )
        answer = await unless_gone(request, scoring)
        request.state.log |= {
            "model": answer.model,
            "items": len(answer.outcomes),
            "tokens": sum(answer.num_tokens),
            "queue_ms": round(1000 * answer.queue_seconds, 1),
            "forward_ms": round(1000 * answer.forward_seconds, 1),
        }
        return answer

    def _models(self) -> dict[str, ServedModel]:
        models = self.scorer.models()
        if not models:
            raise Unavailable("the model is loading")
        return dict(models)

    def _check_count(self, count: int) -> None:
        limit = self.settings.max_items
        if count > limit:
            raise MalformedRequest(
                f"items: {count} scores asked for, one request may ask for {limit}",
                {"fields": [{"field": "items", "message": f"at most {limit} scores"}]},
            )


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``, but cancel it when the client of ``request`` disconnects.

    Raises:
        ClientGone: nobody is there to read the answer.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher = asyncio.create_task(_cancel_when_gone(task, request))
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.done() and task.uncancel() == 0:
            raise ClientGone("the client went away") from None
        raise
    finally:
        watcher.cancel()


async def _cancel_when_gone(task: asyncio.Task[object], request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()
