"""The scorer of ``python -m service``: every model in this process, one replica each."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from reward_model.model import RewardModel
from service.batcher import BatchedScores, Batcher
from service.cache import ResultCache, digest
from service.errors import Unavailable, UnknownModel
from service.logs import FIELDS
from service.metrics import Metrics
from service.replica import WARM_UP_TOKENS, Replica
from service.scorer import Outcome, Readiness, Scored, ServedModel, TokenIds
from service.settings import ModelSettings, ServiceSettings

logger = logging.getLogger("service.embedded")


@dataclass(frozen=True, slots=True)
class Seat:
    """One model being served: what the app sees, the replica, and the queue before it."""

    served: ServedModel
    replica: Replica
    batcher: Batcher


class EmbeddedScorer:
    """Implements :class:`service.scorer.Scorer`. Starts empty; :meth:`load` fills it."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self.metrics = metrics
        self._cache = ResultCache(settings.cache_mib << 20)
        self._seats: dict[str, Seat] = {}
        self._served: dict[str, ServedModel] = {}

    async def load(self) -> None:
        """Load, warm up and self-test every model; nothing is served before all are there.

        Raises:
            CheckpointError: a directory that is no reward model.
        """
        seats = {model.name: await self._load(model) for model in self._settings.model}
        self.metrics.touch(seats)
        self._seats, self._served = seats, {name: seat.served for name, seat in seats.items()}

    def models(self) -> dict[str, ServedModel]:
        return self._served

    async def score(self, model: str, sequences: Sequence[TokenIds], *, timeout: float) -> Scored:
        seat = self._seat(model)
        version = seat.served.version
        keys = [digest(version, sequence) for sequence in sequences]
        known = {key: score for key in keys if (score := self._cache.get(key)) is not None}
        missing = [index for index, key in enumerate(keys) if key not in known]
        self.metrics.cache_hits.labels(model).inc(len(keys) - len(missing))
        batched = BatchedScores([], 0, 0.0, 0.0)
        if missing:
            batched = await seat.batcher.submit(
                [sequences[index] for index in missing],
                [keys[index] for index in missing],
                timeout=timeout,
            )
            self._remember([keys[index] for index in missing], batched.outcomes)
        fresh = iter(batched.outcomes)
        return Scored(
            outcomes=tuple(known[key] if key in known else next(fresh) for key in keys),
            model_version=version,
            computed_tokens=batched.computed_tokens,
            queue_seconds=batched.queue_seconds,
            forward_seconds=batched.forward_seconds,
        )

    async def readiness(self) -> Readiness:
        broken = "; ".join(s.replica.broken for s in self._seats.values() if s.replica.broken)
        reason = broken or ("" if self._seats else "loading")
        states = {name: _describe(seat.replica) for name, seat in self._seats.items()}
        return Readiness(ready=not reason, reason=reason, broken=bool(broken), models=states)

    def replica(self, model: str) -> Replica:
        """The replica behind ``model``."""
        return self._seat(model).replica

    def batcher(self, model: str) -> Batcher:
        """The queue before ``model``."""
        return self._seat(model).batcher

    async def close(self, *, drain: bool = True) -> None:
        """Let what is queued end, and give the threads back."""
        for seat in self._seats.values():
            if drain:
                await seat.batcher.drain()
            seat.replica.close()

    def _seat(self, model: str) -> Seat:
        if not self._seats:
            raise Unavailable("the model is loading")
        if model not in self._seats:
            raise UnknownModel(f"no model named {model!r}", {"models": list(self._seats)})
        return self._seats[model]

    def _remember(self, keys: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        for key, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, float):
                self._cache.put(key, outcome)
        self.metrics.cache_bytes.set(self._cache.num_bytes)

    async def _load(self, own: ModelSettings) -> Seat:
        settings = self._settings
        model = await asyncio.to_thread(
            RewardModel.load,
            own.path,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )
        replica = Replica(own.name, model, share_prefix=settings.share_prefix)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(replica.executor, replica.warm_up, self._warm_up_tokens(model))
        served = served_model(own, settings, replica)
        batcher = Batcher(
            own.name,
            replica.compute,
            replica.executor,
            self.metrics,
            max_batch_tokens=settings.batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            share_prefix=settings.share_prefix and model.causal,
            tokens_per_second=replica.tokens_per_second,
        )
        self._report(served, replica)
        return Seat(served, replica, batcher)

    def _warm_up_tokens(self, model: RewardModel) -> int:
        """On an accelerator a full batch, which proves the budget; on the CPU that takes long."""
        budget = self._settings.batch_tokens
        return min(budget, WARM_UP_TOKENS) if model.device.type == "cpu" else budget

    def _report(self, served: ServedModel, replica: Replica) -> None:
        details = {key: str(value) for key, value in served.details.items()}
        passed = replica.self_test is not None and replica.self_test.passed
        self.metrics.self_test_passed.labels(served.name).set(passed)
        self.metrics.model_info.labels(
            served.name, served.version, details["dtype"], details["device"], details["scoring"]
        ).set(1)
        fields = {"model": served.name, "version": served.version, **_describe(replica)}
        logger.info("model loaded", extra={FIELDS: fields})


def served_model(own: ModelSettings, settings: ServiceSettings, replica: Replica) -> ServedModel:
    """What the app needs to know of a warmed-up replica."""
    model = replica.model
    return ServedModel(
        name=own.name,
        version=str(model.model_version),
        contract=model.contract,
        encoder=model.encoder.reading(own.chat_format or settings.chat_format),
        truncation=own.truncation or settings.truncation,
        details={
            "architecture": type(model.classifier).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "chat_format": own.chat_format or settings.chat_format or "",
            **_describe(replica),
        },
    )


def _describe(replica: Replica) -> dict[str, str | int | float | bool]:
    test = replica.self_test
    return {
        "scoring": replica.scoring,
        "scoring_reason": replica.scoring_reason or "",
        "share_prefix": replica.share_prefix and replica.model.causal,
        "self_test_passed": test is not None and test.passed,
        "self_test_compared": 0 if test is None else test.compared,
        "self_test_differing": 0 if test is None else test.differing,
    }
