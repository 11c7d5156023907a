"""What the app asks of whoever computes the scores: this process, or replicas on Ray Serve.

The app turns every request into token ids (:attr:`ServedModel.encoder`) and hands over token ids
only, so a bad item never meets its neighbours and no user text leaves the process that got it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from reward_model.contract import Contract
from reward_model.encode import Encoder, Truncation
from reward_model.errors import ItemErrorType

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """One sequence has no score, and why. Its neighbours have theirs."""

    type: ItemErrorType
    message: str


Outcome = float | ItemFailure


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to one :meth:`Scorer.score`, all of it from one version of the model."""

    outcomes: tuple[Outcome, ...]
    """One per sequence, in order: the raw float32 score, or why there is none."""
    model_version: str
    computed_tokens: int
    """Tokens that went through the model for this request: shared prefixes count once, results
    taken from the cache count nothing."""
    queue_seconds: float = 0.0
    """From submission until the first of the request's batches began."""
    forward_seconds: float = 0.0
    """From there until the last of its scores was there."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as the app needs it: how to tokenize for it, and what to tell about it."""

    name: str
    version: str
    contract: Contract
    encoder: Encoder
    truncation: Truncation = "error"
    """What the foreign protocols do with an item that is too long; ``/score`` says it itself."""
    details: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Shown by ``/v1/models``: dtype, device, how scores are kept exact."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether scores can be had now. ``broken`` asks for a restart of the process."""

    ready: bool
    reason: str = ""
    broken: bool = False
    models: Mapping[str, Mapping[str, str | int | float | bool]] = field(default_factory=dict)


class Scorer(Protocol):
    """Computes scores of token-id sequences. Every method is called on the app's event loop."""

    def models(self) -> Mapping[str, ServedModel]:
        """The served models by name, in order: the first is the default. Empty while loading."""
        ...

    async def score(
        self,
        model: str,
        sequences: Sequence[TokenIds],
        *,
        timeout: float,
        version: str | None = None,
    ) -> Scored:
        """Score ``sequences`` (valid ids, none empty, none too long) within ``timeout`` seconds.

        Cancelling the call frees its place in the queue. ``version`` is the one that the sequences
        were tokenized for.

        Raises (all of :mod:`service.errors`):
            UnknownModel: no model of that name.
            VersionChanged: the model has another version now, which may read other tokens.
            QueueFull: no room; carries an honest ``retry_after`` in seconds.
            DeadlinePassed: ``timeout`` seconds went by.
            Unavailable: loading, draining or broken.
        """
        ...

    async def readiness(self) -> Readiness:
        """Cheap, and never behind a running forward."""
        ...
