"""The one path from inputs to scores, behind every protocol."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from reward_model.encode import TokenizedItem, Truncation
from service.drift import ScoreDrift
from service.errors import DeadlinePassed, ItemsFailed, ItemsFailedForNow, VersionChanged
from service.inputs import Input, TokenIds, encode_all
from service.metrics import Metrics
from service.scorer import ItemFailure, Outcome, Scored, Scorer, ServedModel

T = TypeVar("T")

FEW_TOKENS = 2048
"""Given as token ids, these are looked through on the event loop: 0.1 ms at most."""

SLICE = 32
"""Inputs tokenized in one go, so that a large request does not keep the small ones waiting."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Parallel to the inputs. ``num_tokens`` is 0 for what could not be tokenized."""

    outcomes: list[Outcome]
    num_tokens: list[int]
    truncated: list[bool]
    served: ServedModel
    """Which tokenized; the version that scored stands in ``model_version``."""
    model_version: str
    computed_tokens: int
    tokenize_seconds: float
    queue_seconds: float
    forward_seconds: float

    @property
    def model(self) -> str:
        return self.served.name

    def scores(self) -> list[float]:
        """The scores, for protocols that know no null.

        Raises:
            ItemsFailed, ItemsFailedForNow: an item has none; its index is named.
        """
        for index, outcome in enumerate(self.outcomes):
            if isinstance(outcome, ItemFailure):
                for_now = outcome.type == "out_of_memory"
                raise (ItemsFailedForNow if for_now else ItemsFailed)(
                    f"item {index}: {outcome.message}", {"index": index, "type": outcome.type}
                )
        return [outcome for outcome in self.outcomes if not isinstance(outcome, ItemFailure)]


class ScoringPath:
    """Tokenizes off the event loop, asks the scorer, and puts the answers in order."""

    def __init__(self, scorer: Scorer, metrics: Metrics, tokenizer_threads: int = 2) -> None:
        self.scorer = scorer
        self._metrics = metrics
        self._drifts: dict[str, tuple[str, ScoreDrift]] = {}
        self._threads = ThreadPoolExecutor(tokenizer_threads, thread_name_prefix="tokenize")

    async def score(
        self,
        model: ServedModel,
        inputs: Sequence[Input],
        *,
        truncation: Truncation,
        timeout: float,
    ) -> Answer:
        """Score ``inputs`` within ``timeout`` seconds, tokenizing included.

        Raises:
            ServiceError: no scores at all; see :meth:`service.scorer.Scorer.score`.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return await self._score(model, inputs, truncation, deadline - time.monotonic())
            except VersionChanged:
                # Tokenized for a version that has gone meanwhile: again, for the one that came.
                model = self.scorer.models()[model.name]

    async def _score(
        self, model: ServedModel, inputs: Sequence[Input], truncation: Truncation, timeout: float
    ) -> Answer:
        started = time.monotonic()
        if _are_few_tokens(inputs):
            items = encode_all(inputs, model.encoder, truncation)
        else:
            try:
                async with asyncio.timeout(timeout):
                    items = await self._tokenize(model, inputs, truncation)
            except TimeoutError:
                raise DeadlinePassed("not tokenized in time") from None
        tokenized = time.monotonic()
        sequences = [item.token_ids for item in items if isinstance(item, TokenizedItem)]
        remaining = max(0.001, timeout - (tokenized - started))
        scored = Scored((), model.version, 0)
        if sequences:
            scored = await self.scorer.score(
                model.name, sequences, timeout=remaining, version=model.version
            )
        outcomes = iter(scored.outcomes)
        answer = Answer(
            outcomes=[i if isinstance(i, ItemFailure) else next(outcomes) for i in items],
            num_tokens=[0 if isinstance(i, ItemFailure) else len(i.token_ids) for i in items],
            truncated=[isinstance(i, TokenizedItem) and i.truncated for i in items],
            served=model,
            model_version=scored.model_version,
            computed_tokens=scored.computed_tokens,
            tokenize_seconds=tokenized - started,
            queue_seconds=scored.queue_seconds,
            forward_seconds=scored.forward_seconds,
        )
        self._metrics.count_answer(answer.model, answer.outcomes, sum(answer.num_tokens))
        self._follow_drift(answer)
        return answer

    def _follow_drift(self, answer: Answer) -> None:
        """A new version starts anew; a model without statistics has nothing to be held against."""
        stats = answer.served.contract.stats
        if stats is None:
            return
        version, drift = self._drifts.get(answer.model, ("", None))
        if drift is None or version != answer.model_version:
            drift = ScoreDrift(stats)
            self._drifts[answer.model] = (answer.model_version, drift)
        drift.add(score for score in answer.outcomes if not isinstance(score, ItemFailure))
        self._metrics.show_drift(answer.model, drift.shift, drift.spread)

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call ``function``, which tokenizes, where tokenizing is done: off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    async def _tokenize(
        self, model: ServedModel, inputs: Sequence[Input], truncation: Truncation
    ) -> list[TokenizedItem | ItemFailure]:
        items: list[TokenizedItem | ItemFailure] = []
        for start in range(0, len(inputs), SLICE):
            piece = inputs[start : start + SLICE]
            items += await self.run(encode_all, piece, model.encoder, truncation)
        return items


def _are_few_tokens(inputs: Sequence[Input]) -> bool:
    """Whether asking a thread takes longer than to look through them."""
    left = FEW_TOKENS
    for one in inputs:
        if not isinstance(one, TokenIds):
            return False
        left -= len(one.token_ids)
    return left >= 0
