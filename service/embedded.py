"""The scorer of ``python -m service``: every model in this process, one replica each."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from reward_model.bases import Bases
from reward_model.errors import SumzeroError
from reward_model.kernels.library import used
from reward_model.model import RewardModel
from reward_model.threads import ComputeThreads, in_passing_thread
from service.batcher import BatchedScores, Batcher
from service.cache import ResultCache, digest
from service.errors import Unavailable, UnknownModel, VersionChanged
from service.logs import FIELDS
from service.metrics import Metrics
from service.replica import WARM_UP_TOKENS, Replica
from service.scorer import Readiness, Scored, ServedModel, TokenIds
from service.settings import ModelSettings, ServiceSettings

logger = logging.getLogger("service.embedded")


@dataclass(frozen=True, slots=True)
class Seat:
    """One model being served: what the app sees, the replica, its thread, the queue before it."""

    served: ServedModel
    replica: Replica
    thread: ThreadPoolExecutor
    batcher: Batcher


class EmbeddedScorer:
    """Implements :class:`service.scorer.Scorer`. Starts empty; :meth:`load` fills it."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self.metrics = metrics
        self._cache = ResultCache(settings.cache_mib << 20)
        self._bases = Bases()
        self._threads = ComputeThreads()
        self._seats: dict[str, Seat] = {}
        self._served: dict[str, ServedModel] = {}
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Load, warm up and self-test every model; nothing is served before all are there.

        Raises:
            CheckpointError: a directory that is no reward model.
        """
        seats = {model.name: await self._load(model) for model in self._settings.model}
        self.metrics.touch(seats)
        self._seats, self._served = seats, {name: seat.served for name, seat in seats.items()}

    async def reload(self, models: Sequence[ModelSettings] = ()) -> None:
        """Read every model's directory anew and change to what is there, while scores go on.

        What was submitted to the old version is answered by it. A directory that cannot be served
        is said in the log, and the old version stays.

        Args:
            models: these instead of all, by their names, with the directories named here.
        """
        async with self._reloading:
            for own in (models or self._settings.model) if self._seats else ():
                try:
                    new = await self._load(own)
                except SumzeroError as error:
                    fields = {"model": own.name, "reason": str(error)}
                    logger.error("not reloaded; the old version stays", extra={FIELDS: fields})
                    continue
                self._change(own.name, new)

    def _change(self, name: str, new: Seat) -> None:
        old = self._seats[name]
        if new.served.version == old.served.version:
            self._threads.give_back(new.thread)
            return
        # New dictionaries: whoever holds the old ones sees one state and not half of another.
        self._seats = self._seats | {name: new}
        self._served = self._served | {name: new.served}
        task = asyncio.create_task(self._retire(old), name=f"retire-{name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Seat) -> None:
        await old.batcher.drain()
        self._threads.give_back(old.thread)
        self.metrics.model_info.remove(*_info(old.served))
        fields = {"model": old.served.name, "version": old.served.version}
        logger.info("old version retired", extra={FIELDS: fields})

    def models(self) -> dict[str, ServedModel]:
        return self._served

    async def score(
        self,
        model: str,
        sequences: Sequence[TokenIds],
        *,
        timeout: float,
        version: str | None = None,
    ) -> Scored:
        seat = self._seat(model)
        if version is not None and version != seat.served.version:
            raise VersionChanged(f"model {model} was updated; try again")
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
            self._threads.give_back(seat.thread)
        if drain:
            await asyncio.gather(*self._retiring)
        self._threads.close()

    def _seat(self, model: str) -> Seat:
        if not self._seats:
            raise Unavailable("the model is loading")
        if model not in self._seats:
            raise UnknownModel(f"no model named {model!r}", {"models": list(self._seats)})
        return self._seats[model]

    def _remember(self, key: bytes, score: float) -> None:
        self._cache.put(key, score)
        self.metrics.cache_bytes.set(self._cache.num_bytes)

    async def _load(self, own: ModelSettings) -> Seat:
        settings = self._settings
        replica = await in_passing_thread(self._open, own)
        thread = self._threads.take(own.name, replica.model.device)
        served = served_model(own, settings, replica)
        batcher = Batcher(
            own.name,
            replica.compute,
            thread,
            self.metrics,
            max_batch_tokens=settings.batch_tokens,
            quick_batch_tokens=settings.quick_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            share_prefix=settings.share_prefix and replica.model.causal,
            tokens_per_second=replica.tokens_per_second,
            remember=self._remember,
        )
        self._report(served, replica)
        return Seat(served, replica, thread, batcher)

    def _open(self, own: ModelSettings) -> Replica:
        settings = self._settings
        model = RewardModel.load(
            own.path,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
            bases=self._bases,
            base=own.base,
        )
        replica = Replica(own.name, model, share_prefix=settings.share_prefix)
        replica.warm_up(self._warm_up_tokens(model))
        return replica

    def _warm_up_tokens(self, model: RewardModel) -> int:
        """On an accelerator a full batch, which proves the budget; on the CPU that takes long."""
        budget = self._settings.batch_tokens
        return min(budget, WARM_UP_TOKENS) if model.device.type == "cpu" else budget

    def _report(self, served: ServedModel, replica: Replica) -> None:
        passed = replica.self_test is not None and replica.self_test.passed
        self.metrics.self_test_passed.labels(served.name).set(passed)
        self.metrics.model_info.labels(*_info(served)).set(1)
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
            **_weights(model),
            **_describe(replica),
        },
    )


def _weights(model: RewardModel) -> dict[str, str]:
    """Models of one process that show the same ``base_version`` hold those weights once."""
    if model.base is None:
        return {"weights": "its own"}
    told = {"weights": "shared by base_version", "base_version": model.base.version}
    if model.adapter is None:
        return told
    ranks = sorted({len(a_RI) for a_RI, _ in model.adapter.pairs.values()})
    lora = f"rank {', '.join(map(str, ranks))} on {len(model.adapter.pairs)} layers, not merged"
    return {**told, "base": model.adapter.base_name, "lora": lora}


def _info(served: ServedModel) -> tuple[str, ...]:
    """The labels of a model's series in ``sumzero_model_info``."""
    details = [str(served.details[key]) for key in ("dtype", "device", "scoring")]
    return (served.name, served.version, *details)


def _describe(replica: Replica) -> dict[str, str | int | float | bool]:
    test = replica.self_test
    return {
        "scoring": replica.scoring,
        "scoring_reason": replica.scoring_reason or "",
        "kernels": used(replica.model.dtype, replica.model.device),
        "share_prefix": replica.share_prefix and replica.model.causal,
        "self_test_passed": test is not None and test.passed,
        "self_test_compared": 0 if test is None else test.compared,
        "self_test_differing": 0 if test is None else test.differing,
    }
