"""Admission by tokens, deadlines, cancellation, one packed batch after another.

An idle replica starts at once with what is there; while it computes, the next batch gathers. There
is no timer. First come, first served: a batch is the head of the queue, as much as its token budget
holds, which is larger where much waits. Equal sequences that wait or compute at the same time are
computed once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from reward_model.scoring import first_batch
from service.errors import DeadlinePassed, QueueFull, ServiceError, Unavailable
from service.logs import log_fault
from service.metrics import Metrics
from service.replica import Computed
from service.scorer import Outcome, TokenIds

logger = logging.getLogger("service.batcher")

Compute = Callable[[Sequence[TokenIds]], Computed]

RATE_WEIGHT = 0.3
"""Weight of a full batch in the measured throughput; smaller batches weigh less."""


@dataclass(eq=False, slots=True)
class Work:
    """One distinct sequence, and how many requests wait for it."""

    token_ids: TokenIds
    key: Hashable
    done: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome | ServiceError | None = None
    waiters: int = 0
    started: float | None = None
    computed_share: float = 0.0
    """Computed tokens per token of its batch."""


@dataclass(frozen=True, slots=True)
class BatchedScores:
    """The outcomes of one submission, parallel to its sequences."""

    outcomes: list[Outcome]
    computed_tokens: int
    queue_seconds: float
    forward_seconds: float


class Batcher:
    """The queue before one replica. Lives on one event loop.

    Args:
        name: the model, for metrics and messages.
        compute: scores one batch; blocks; runs in ``executor``.
        max_batch_tokens: budget of one batch, counted as the tokens left to compute after sharing
            with the sequence before. A longer sequence is a batch of its own.
        quick_batch_tokens: the budget while little waits, by default the same. Half of what waits
            is taken where that is more: who comes then waits longer for the queue than for a batch.
        max_queue_tokens: tokens that may wait. A request that finds the queue empty is always
            admitted, so that a request larger than the queue is not refused for ever.
        share_prefix: whether sequences with equal leading tiles cost less.
        tokens_per_second: throughput to assume before the first batch.
        remember: told every score as soon as it is there, whoever still waits for it, so that a
            request that comes again after its deadline finds what was computed meanwhile.
    """

    def __init__(
        self,
        name: str,
        compute: Compute,
        executor: Executor,
        metrics: Metrics,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        quick_batch_tokens: int | None = None,
        share_prefix: bool = True,
        tokens_per_second: float = 0.0,
        remember: Callable[[Any, float], None] = lambda key, score: None,
    ) -> None:
        self.name = name
        self.max_batch_tokens = max_batch_tokens
        self.quick_batch_tokens = quick_batch_tokens or max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self.queued_tokens = 0
        self.tokens_per_second = tokens_per_second
        self._compute = compute
        self._executor = executor
        self._metrics = metrics
        self._queued = metrics.queue_tokens.labels(name)
        self._waited = metrics.queue_seconds.labels(name)
        self._share_prefix = share_prefix
        self._remember = remember
        self._queue: deque[Work] = deque()
        self._abandoned_tokens = 0
        self._in_flight: dict[Hashable, Work] = {}
        self._runner: asyncio.Task[None] | None = None
        self._batch_tokens = 0
        self._batch_started = 0.0

    async def submit(
        self, sequences: Sequence[TokenIds], keys: Sequence[Hashable], *, timeout: float
    ) -> BatchedScores:
        """Score ``sequences``; ``keys`` are equal where sequences are.

        Cancelling frees the places of what nobody else waits for.

        Raises:
            QueueFull, DeadlinePassed, Unavailable, InternalError
        """
        submitted = time.monotonic()
        works = self._admit(sequences, keys)
        try:
            async with asyncio.timeout(timeout):
                for work in works:
                    await work.done.wait()
        except TimeoutError:
            raise DeadlinePassed(f"no scores within {timeout:g} s") from None
        finally:
            self._leave(works)
        return self._collect(works, submitted)

    async def drain(self) -> None:
        """Wait until nothing is queued and nothing computes."""
        while self._runner is not None:
            await asyncio.shield(self._runner)

    def _admit(self, sequences: Sequence[TokenIds], keys: Sequence[Hashable]) -> list[Work]:
        """Queue the whole request, or none of it."""
        new: dict[Hashable, Work] = {}
        works: list[Work] = []
        for token_ids, key in zip(sequences, keys, strict=True):
            work = self._in_flight.get(key) or new.get(key)
            if work is None:
                work = new[key] = Work(token_ids, key)
            works.append(work)
        needed = sum(len(work.token_ids) for work in new.values())
        self._check_room(needed)
        for work in works:
            work.waiters += 1
        self._queue.extend(new.values())
        self._in_flight |= new
        self._count_queued(needed)
        if self._queue and self._runner is None:
            self._runner = asyncio.create_task(self._run(), name=f"batcher-{self.name}")
        return works

    def _check_room(self, needed: int) -> None:
        excess = self.queued_tokens + needed - self.max_queue_tokens
        if excess <= 0 or needed == 0 or self.queued_tokens == 0:
            return
        rate = max(self.tokens_per_second, 1.0)
        computing = max(0.0, self._batch_tokens - rate * (time.monotonic() - self._batch_started))
        wait = (min(excess, self.queued_tokens) + computing) / rate
        raise QueueFull(
            f"{self.queued_tokens} tokens wait for model {self.name}, the limit is "
            f"{self.max_queue_tokens}",
            {
                "queued_tokens": self.queued_tokens,
                "max_queue_tokens": self.max_queue_tokens,
                "retry_after": round(wait, 3),
            },
        )

    def _leave(self, works: Sequence[Work]) -> None:
        """A request is done, late or gone: drop what nobody waits for and has not begun."""
        dropped = 0
        for work in works:
            work.waiters -= 1
            if work.waiters == 0 and self._in_flight.get(work.key) is work and not work.started:
                # It stays in the deque, to be skipped: removing from the middle costs O(n).
                del self._in_flight[work.key]
                dropped += len(work.token_ids)
        if dropped == 0:
            return
        self._count_queued(-dropped)
        self._abandoned_tokens += dropped
        if self._abandoned_tokens > self.max_queue_tokens:
            # Whoever asks and goes away, over and over, must not fill the memory behind a batch.
            self._queue = deque(work for work in self._queue if work.waiters > 0)
            self._abandoned_tokens = 0

    async def _run(self) -> None:
        """Compute batch after batch until the queue is empty."""
        try:
            while batch := self._take_batch():
                await self._compute_batch(batch)
        finally:
            self._runner = None

    def _take_batch(self) -> list[Work]:
        """The head of the queue, as much as the token budget holds."""
        batch: list[Work] = []
        budget = min(self.max_batch_tokens, max(self.quick_batch_tokens, self.queued_tokens // 2))
        waiting = (work.token_ids for work in self._queue if work.waiters > 0)
        count = first_batch(waiting, budget, share_prefix=self._share_prefix)
        while self._queue and len(batch) < count:
            work = self._queue.popleft()
            if work.waiters > 0:
                batch.append(work)
        now = time.monotonic()
        for work in batch:
            work.started = now
        self._count_queued(-sum(len(work.token_ids) for work in batch))
        return batch

    async def _compute_batch(self, batch: Sequence[Work]) -> None:
        sequences = [work.token_ids for work in batch]
        tokens, computed_tokens = sum(map(len, sequences)), 0
        stopped = Unavailable(f"model {self.name} has stopped")
        outcomes: Sequence[Outcome | ServiceError] = [stopped for _ in batch]
        self._batch_tokens, self._batch_started = tokens, time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            computed = await loop.run_in_executor(self._executor, self._compute, sequences)
            outcomes, computed_tokens = computed.outcomes, computed.computed_tokens
            self._observe(tokens, len(batch), computed, time.monotonic() - self._batch_started)
        except Exception as error:
            log_fault(logger, f"model {self.name}: a batch was lost", error)
        finally:
            self._batch_tokens = 0
            for work, outcome in zip(batch, outcomes, strict=True):
                work.outcome = outcome
                if isinstance(outcome, float):
                    self._remember(work.key, outcome)
                work.computed_share = computed_tokens / tokens
                self._in_flight.pop(work.key, None)
                work.done.set()

    def _observe(self, tokens: int, count: int, computed: Computed, seconds: float) -> None:
        rate = tokens / max(seconds, 1e-6)
        weight = RATE_WEIGHT * min(1.0, tokens / self.max_batch_tokens)
        past = self.tokens_per_second or rate
        self.tokens_per_second = past + weight * (rate - past)
        self._metrics.tokens_per_second.labels(self.name).set(self.tokens_per_second)
        self._metrics.batch_tokens.labels(self.name).observe(computed.computed_tokens)
        self._metrics.batch_sequences.labels(self.name).observe(count)
        self._metrics.computed_tokens.labels(self.name).inc(computed.computed_tokens)
        self._metrics.forward_seconds.labels(self.name).observe(computed.seconds)
        self._metrics.bisections.labels(self.name).inc(computed.bisections)

    def _collect(self, works: Sequence[Work], submitted: float) -> BatchedScores:
        outcomes: list[Outcome] = []
        for work in works:
            if isinstance(work.outcome, ServiceError):
                raise work.outcome
            assert work.outcome is not None
            outcomes.append(work.outcome)
        begun = max(
            submitted, min((work.started or submitted for work in works), default=submitted)
        )
        self._waited.observe(begun - submitted)
        distinct = {id(work): work for work in works}.values()
        return BatchedScores(
            outcomes=outcomes,
            computed_tokens=round(
                sum(work.computed_share * len(work.token_ids) for work in distinct)
            ),
            queue_seconds=begun - submitted,
            forward_seconds=time.monotonic() - begun,
        )

    def _count_queued(self, change: int) -> None:
        self.queued_tokens += change
        self._queued.set(self.queued_tokens)
