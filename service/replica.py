"""One model on one device: one packed batch after another."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from reward_model.self_test import SelfTest, self_test
from service.errors import InternalError, ServiceError, Unavailable
from service.logs import log_fault
from service.scorer import ItemFailure, Outcome, TokenIds

logger = logging.getLogger("service.replica")

WARM_UP_TOKENS = 1024

Scoring = Literal["packed", "one sequence per forward"]


@dataclass(frozen=True, slots=True)
class Computed:
    """What one batch came to. ``outcomes`` has one entry per sequence, in order."""

    outcomes: list[Outcome | ServiceError]
    computed_tokens: int
    seconds: float
    bisections: int = 0


class Replica:
    """Scores batches of token ids. One failing sequence leaves its neighbours unharmed.

    A batch that fails (an exception, out of memory, a score that is not finite) is cut in two and
    each half is tried again, down to the sequences that fail alone.

    Its methods block, and are called from one thread at a time (:mod:`reward_model.threads`).
    """

    def __init__(self, name: str, model: RewardModel, *, share_prefix: bool = True) -> None:
        self.name = name
        self.model = model
        self.share_prefix = share_prefix
        self.scoring: Scoring = "packed" if model.obstacle is None else "one sequence per forward"
        self.scoring_reason = model.obstacle
        self.self_test: SelfTest | None = None
        self.tokens_per_second = 0.0
        self._bisections = 0
        self.broken = ""
        self._probe_score: float | None = None
        self._ran_out_of_memory = False

    def warm_up(self, tokens: int = WARM_UP_TOKENS) -> None:
        """Prove the scores exact, or fall back; compute a batch of ``tokens``; measure the rate.

        Raises:
            ServiceError: the model cannot score even that.
            UsageError: there is no memory for so many tokens.
        """
        self.self_test = self_test(self.model)
        if not self.self_test.passed:
            self.scoring = "one sequence per forward"
            self.scoring_reason = "the self-test failed"
            logger.warning(
                "model %s: self-test failed, %d of %d packed scores differ from single ones; "
                "scoring one sequence per forward",
                self.name,
                self.self_test.differing,
                self.self_test.compared,
            )
        sequences = self._warm_up_sequences(tokens)
        self.compute(sequences)  # the first forward allocates
        computed = self.compute(sequences)
        for outcome in computed.outcomes:
            if isinstance(outcome, ServiceError):
                raise outcome
        if self._ran_out_of_memory:
            raise UsageError(
                f"model {self.name}: {tokens} tokens do not fit into the memory of "
                f"{self.model.device}; lower --max_batch_tokens"
            )
        self.tokens_per_second = sum(map(len, sequences)) / max(computed.seconds, 1e-6)
        probe = self._probe()
        self._probe_score = probe if probe is not None and math.isfinite(probe) else None

    def compute(self, sequences: Sequence[TokenIds]) -> Computed:
        """Score one batch. Never raises for what one sequence did."""
        started = time.perf_counter()
        if self.broken:
            return Computed([Unavailable(self.broken) for _ in sequences], 0, 0.0)
        step = len(sequences) if self.scoring == "packed" else 1
        outcomes: list[Outcome | ServiceError] = []
        computed_tokens = 0
        self._bisections = 0
        for start in range(0, len(sequences), max(step, 1)):
            part, tokens = self._score(sequences[start : start + step])
            outcomes += part
            computed_tokens += tokens
        seconds = time.perf_counter() - started
        return Computed(outcomes, computed_tokens, seconds, self._bisections)

    def _score(self, sequences: Sequence[TokenIds]) -> tuple[list[Outcome | ServiceError], int]:
        failure: ItemFailure | ServiceError
        try:
            scores, computed_tokens = self._forward(sequences)
            if all(map(math.isfinite, scores)):
                return list(scores), computed_tokens
            failure = ItemFailure("not_finite", "the model's score is not a finite number")
        except Exception as error:
            failure = self._explain(error, alone=len(sequences) == 1)
        # Out of the except block the failed forward's tensors are gone, so there is memory again.
        if self.model.device.type == "cuda" and not self.broken:
            torch.cuda.empty_cache()
        if len(sequences) == 1 or self.broken:
            return [failure for _ in sequences], 0
        self._bisections += 1
        middle = len(sequences) // 2
        first, first_tokens = self._score(sequences[:middle])
        second, second_tokens = self._score(sequences[middle:])
        return first + second, first_tokens + second_tokens

    def _forward(self, sequences: Sequence[TokenIds]) -> tuple[list[float], int]:
        with torch.inference_mode():
            packed = self.model.pack(sequences, share_prefix=self.share_prefix)
            scores: list[float] = self.model(packed).rewards_N.tolist()
        if len(scores) != len(sequences):
            raise RuntimeError(f"{len(scores)} scores for {len(sequences)} sequences")
        return scores, packed.computed_tokens

    def _explain(self, error: Exception, *, alone: bool) -> ItemFailure | ServiceError:
        if _is_out_of_memory(error):
            self._ran_out_of_memory = True
            return ItemFailure("out_of_memory", "not enough memory for this sequence")
        if not alone:
            return InternalError("scoring failed")
        log_fault(logger, f"model {self.name}: a sequence could not be scored", error)
        if self._probe_score is not None and self._probe() != self._probe_score:
            self.broken = f"model {self.name} no longer computes; restart the service"
            logger.critical("%s", self.broken)
            return Unavailable(self.broken)
        return InternalError("scoring failed; the log says why")

    def _probe(self) -> float | None:
        """The score of a fixed sequence: tells a lost device from a bad item."""
        try:
            return self._forward([self._warm_up_sequences(8)[0]])[0][0]
        except Exception:
            return None

    def _warm_up_sequences(self, tokens: int) -> list[list[int]]:
        length = min(self.model.contract.max_length, 256, tokens)
        vocabulary = self.model.encoder.vocab_size
        return [
            [(row * 7919 + place * 104729) % vocabulary for place in range(length)]
            for row in range(max(1, tokens // length))
        ]


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA says so by type; the CPU allocator by a RuntimeError's text."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
