"""The app's scorer where the weights are in replicas behind Ray Serve handles.

The ingress tokenizes for a model by what its replica told of it. A replica that was updated since
refuses tokens that were made the old way (:class:`EncodingChanged`), and the ingress asks anew.
"""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from service.errors import (
    DeadlinePassed,
    InternalError,
    ServiceError,
    Unavailable,
    UnknownModel,
    VersionChanged,
)
from service.scorer import Readiness, Scored, ServedModel, TokenIds

if TYPE_CHECKING:
    from service.deployment import ModelReplica

READINESS_SECONDS = 5.0
"""A model replica that does not say how it is within this time is not ready."""

RETRY_SECONDS = 0.2
"""Pause before another replica is asked after one has died."""


class EncodingChanged(Unavailable):
    """The tokens were made for another version of the model: make them anew and ask again."""


def encoding_version(served: ServedModel) -> str:
    """A digest of everything that turns an input of this model into token ids."""
    tokenizer = served.encoder.tokenizer
    contract = served.contract
    parts = (
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        f"{contract.bos} {contract.append_eos} {contract.max_length}",
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class RayScorer:
    """Implements :class:`service.scorer.Scorer` with the replicas behind Ray Serve handles."""

    def __init__(self, handles: Mapping[str, "DeploymentHandle[ModelReplica]"]) -> None:
        self._handles = handles
        self._served: dict[str, ServedModel] = {}
        self._encodings: dict[str, str] = {}

    def load(self) -> None:
        """Learn from every model's replica how to tokenize for it. Blocks until they are there."""
        for name, handle in self._handles.items():
            self._served[name], self._encodings[name] = handle.describe.remote().result()

    def models(self) -> dict[str, ServedModel]:
        return self._served

    async def score(
        self,
        model: str,
        sequences: Sequence[TokenIds],
        *,
        timeout: float,
        version: str | None = None,  # the replica compares the version of the encoding
    ) -> Scored:
        if model not in self._handles:
            raise UnknownModel(f"no model named {model!r}", {"models": list(self._handles)})
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                return await self._ask(model, sequences, left)
            except RayActorError:
                # Scoring has no side effects, so what a dead replica held is asked again.
                await asyncio.sleep(min(RETRY_SECONDS, left))
        raise DeadlinePassed(f"no scores within {timeout:g} s")

    async def readiness(self) -> Readiness:
        answers = await asyncio.gather(*map(self._readiness_of, self._handles))
        return Readiness(
            ready=all(answer.ready for answer in answers),
            reason="; ".join(answer.reason for answer in answers if answer.reason),
            models={name: state for answer in answers for name, state in answer.models.items()},
        )

    async def _ask(self, model: str, sequences: Sequence[TokenIds], left: float) -> Scored:
        response = self._handles[model].score.remote(sequences, left, self._encodings[model])
        try:
            async with asyncio.timeout(left):
                scored: Scored = await response
        except TimeoutError:
            response.cancel()
            raise DeadlinePassed(f"no scores within {left:g} s") from None
        except asyncio.CancelledError:  # the client has gone: free its place in the replica
            response.cancel()
            raise
        except RayTaskError as error:
            if isinstance(error.cause, EncodingChanged):
                await self._refresh(model)
                raise VersionChanged(error.cause.message) from None
            raise _translate(error.cause) from None
        except DeploymentUnavailableError as error:
            raise Unavailable(error.message) from None
        if scored.model_version != self._served[model].version:
            await self._refresh(model)
        return scored

    async def _refresh(self, model: str) -> None:
        served, encoding = await self._handles[model].describe.remote()
        self._served[model], self._encodings[model] = served, encoding

    async def _readiness_of(self, model: str) -> Readiness:
        try:
            async with asyncio.timeout(READINESS_SECONDS):
                readiness: Readiness = await self._handles[model].readiness.remote()
                return readiness
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return Readiness(ready=False, reason=f"model {model} has no replica that answers")


def _translate(cause: BaseException) -> ServiceError:
    """What a replica raised, as the app's own error; a fault's text stays in the replica's log."""
    if isinstance(cause, ServiceError):
        return cause
    return InternalError(f"scoring failed: {type(cause).__name__}")
