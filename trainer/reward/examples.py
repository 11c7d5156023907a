"""Preference pairs as token ids, and the order in which they are trained on."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from reward_model.encode import Encoder, Truncation
from reward_model.errors import ItemError
from reward_model.packing import count_computed_tokens
from trainer.data.preferences import Conversation, Pair

TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Example:
    """A pair as the model reads it. ``cost``: rows its forward computes, the prompt shared."""

    chosen: TokenIds
    rejected: TokenIds
    margin: float
    cost: int


@dataclass(slots=True)
class ExampleSet:
    """Examples, and the pairs that became none or were shortened, counted.

    ``lost``: too_long, response_too_long (cutting the prompt would not help), empty,
    template_failed, identical (after cutting). ``cut``: pairs with a shortened prompt.
    """

    examples: list[Example] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def fingerprint(self) -> str:
        """sha256 over all token ids and margins in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(
                f"{len(example.chosen)} {len(example.rejected)} {example.margin}".encode()
            )
            digest.update(example.chosen.tobytes() + example.rejected.tobytes())
        return digest.hexdigest()


def tokenise_pairs(
    pairs: Sequence[Pair],
    encoder: Encoder,
    *,
    causal: bool,
    too_long: Literal["drop", "cut_prompt"] = "drop",
) -> ExampleSet:
    """Token ids of every pair that fits, or can be made to fit, the model's maximum length."""
    result = ExampleSet()
    truncation: Truncation = "left" if too_long == "cut_prompt" else "error"
    for pair in pairs:
        try:
            chosen, chosen_cut = _encode(encoder, pair.chosen, pair.chosen_response, truncation)
            rejected, rejected_cut = _encode(
                encoder, pair.rejected, pair.rejected_response, truncation
            )
        except ItemError as error:
            result.lost[error.type] += 1
            continue
        except _ResponseTooLongError:
            result.lost["response_too_long"] += 1
            continue
        if chosen == rejected:
            result.lost["identical"] += 1
            continue
        result.cut += chosen_cut or rejected_cut
        result.examples.append(
            Example(
                np.asarray(chosen, dtype=np.int32),
                np.asarray(rejected, dtype=np.int32),
                pair.margin or 0.0,
                count_computed_tokens([chosen, rejected], causal=causal),
            )
        )
    return result


class _ResponseTooLongError(Exception):
    """Nothing would be left of the prompt."""


def _encode(
    encoder: Encoder, sequence: Conversation | str, response: str, truncation: Truncation
) -> tuple[tuple[int, ...], bool]:
    if isinstance(sequence, str):
        item = encoder.text(sequence, truncation)
    else:
        item = encoder.messages(sequence, truncation)
    if item.truncated and not isinstance(sequence, str):
        tokens = encoder.tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) >= encoder.contract.max_length:
            raise _ResponseTooLongError
    return item.token_ids, item.truncated


def batch_order(count: int, batch_pairs: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every optimiser batch of one epoch: each pair once, the last batch ragged.

    A function of its arguments alone, so that a resumed run sees the same batches.
    """
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_pairs] for start in range(0, count, batch_pairs)]


def rank_share(batch: Sequence[int], rank: int, ranks: int) -> list[int]:
    """This rank's part of an optimiser batch: contiguous, sizes differ by one at most."""
    start, end = (len(batch) * part // ranks for part in (rank, rank + 1))
    return list(batch[start:end])


def cut_by_cost(
    costs: Sequence[int], max_tokens: int, max_pairs: int | None = None
) -> Iterator[range]:
    """Cut pairs, in their order, into runs of at most ``max_tokens`` and ``max_pairs``.

    A pair that alone is over the budget makes a run of its own.
    """
    start, tokens = 0, 0
    for index, cost in enumerate(costs):
        full = tokens + cost > max_tokens
        if max_pairs is not None:
            full = full or index - start >= max_pairs
        if full and index > start:
            yield range(start, index)
            start, tokens = index, 0
        tokens += cost
    if start < len(costs):
        yield range(start, len(costs))


def learning_rate(step: int, steps: int, warmup_share: float, peak: float) -> float:
    """Linear warm-up to ``peak``, then linear decay that reaches zero after the last step.

    ``step`` counts from 0; no step has rate 0.
    """
    warmup = round(steps * warmup_share)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / (steps - warmup)
