"""Preference pairs, from any of TRL's formats, with what cannot be trained on counted."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reward_model.encode import Message
from reward_model.errors import UsageError
from trainer.data.hh import is_dialogue, parse_dialogue
from trainer.data.rows import Row, read_rows

Conversation = tuple[Message, ...]
Fault = Literal["broken", "empty", "identical"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A chosen and a rejected sequence: whole conversations, or text that is already templated.

    ``chosen_response`` and ``rejected_response`` are the texts after the common prompt.
    """

    chosen: Conversation | str
    rejected: Conversation | str
    chosen_response: str
    rejected_response: str
    margin: float | None = None


@dataclass(slots=True)
class PairSet:
    """The good pairs of a source and the count of the rest.

    ``faults``: broken (not an object, a column missing or of the wrong type), empty (a response
    without text), identical (chosen equals rejected).
    """

    source: str
    pairs: list[Pair] = field(default_factory=list)
    rows: int = 0
    faults: Counter[Fault] = field(default_factory=Counter)
    first_fault: str = ""

    @property
    def faulty(self) -> int:
        return sum(self.faults.values())

    @property
    def has_margin(self) -> bool:
        return any(pair.margin is not None for pair in self.pairs)


class RowError(Exception):
    """One row is no pair; ``fault`` is the kind and the text says why."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault: Fault = fault


def read_pairs(
    source: str, *, split: str = "train", limit: int | None = None, max_fault_share: float = 0.05
) -> PairSet:
    """Read the preference pairs of a file or hub data set.

    Args:
        source: see :func:`trainer.data.rows.read_rows`.
        split: split of a hub data set.
        limit: stop after so many good pairs.
        max_fault_share: largest share of rows that may be no pairs.

    Raises:
        UsageError: nothing to train on, or more faulty rows than allowed; the text names the
            source, the counts and the first faulty row.
    """
    result = PairSet(source)
    for row in read_rows(source, split):
        if limit is not None and len(result.pairs) >= limit:
            break
        result.rows += 1
        try:
            result.pairs.append(parse_pair(row))
        except RowError as fault:
            result.first_fault = result.first_fault or f"row {result.rows}: {fault}"
            result.faults[fault.fault] += 1
    _check(result, max_fault_share)
    return result


def parse_pair(row: Row | None) -> Pair:
    """One row as a pair.

    Raises:
        RowError: it is none, and why.
    """
    if row is None:
        raise RowError("broken", "not a JSON object")
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    # HH files that give the dialogue before the responses call it messages.
    prompt = row.get("prompt", row.get("messages"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("broken", "chosen and rejected are of different kinds")
    if isinstance(chosen, str) and isinstance(rejected, str):
        pair = _text_pair(prompt, chosen, rejected, _margin(row))
    else:
        pair = _message_pair(prompt, _messages(chosen), _messages(rejected), _margin(row))
    if not pair.chosen_response.strip() or not pair.rejected_response.strip():
        raise RowError("empty", "a response has no text")
    if pair.chosen_response == pair.rejected_response:
        raise RowError("identical", "chosen equals rejected")
    return pair


def _text_pair(prompt: Any, chosen: str, rejected: str, margin: float | None) -> Pair:
    if prompt is None and is_dialogue(chosen) and is_dialogue(rejected):
        return _message_pair(None, parse_dialogue(chosen), parse_dialogue(rejected), margin)
    if prompt is None:
        return Pair(chosen, rejected, chosen, rejected, margin)
    turns = parse_prompt(prompt)
    return Pair(
        (*turns, Message(role="assistant", content=chosen)),
        (*turns, Message(role="assistant", content=rejected)),
        chosen,
        rejected,
        margin,
    )


def _message_pair(
    prompt: Any, chosen: Conversation, rejected: Conversation, margin: float | None
) -> Pair:
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    # Some data sets give the prompt twice: as a column and as the first turns of both sides.
    if prompt is not None and not _ends_with(chosen[:common], turns := parse_prompt(prompt)):
        chosen, rejected = (*turns, *chosen), (*turns, *rejected)
        common += len(turns)
    return Pair(chosen, rejected, _text(chosen[common:]), _text(rejected[common:]), margin)


def _ends_with(turns: Conversation, end: Conversation) -> bool:
    return turns[max(0, len(turns) - len(end)) :] == end


def _column(row: Row, name: str) -> Any:
    value = row.get(name)
    if not isinstance(value, str | list):
        raise RowError("broken", f"column {name} is missing or neither text nor messages")
    return value


def parse_prompt(prompt: Any) -> Conversation:
    """The turns before a response; a text is one turn of the user.

    Raises:
        RowError: neither text nor messages.
    """
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    return _messages(prompt)


def _messages(value: Any) -> Conversation:
    if not isinstance(value, list) or not value:
        raise RowError("broken", "a conversation is not a list of messages")
    return tuple(_message(entry) for entry in value)


def _message(entry: Any) -> Message:
    if isinstance(entry, Mapping):
        role, content = entry.get("role"), entry.get("content")
        if isinstance(role, str) and isinstance(content, str):
            return Message(role=role, content=content)
    raise RowError("broken", "a message has no role or content")


def _margin(row: Row) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise RowError("broken", "margin is not a finite number")
    return float(margin)


def _text(messages: Conversation) -> str:
    """All turns after the prompt as one text: tells equal responses, and empty ones, apart."""
    return "\n\n".join(message["content"] for message in messages)


def _check(result: PairSet, max_fault_share: float) -> None:
    counts = ", ".join(f"{count} {fault}" for fault, count in sorted(result.faults.items()))
    if not result.pairs:
        raise UsageError(
            f"{result.source}: no preference pair in {result.rows} rows"
            + (f" ({counts}; {result.first_fault})" if counts else "")
        )
    share = result.faulty / result.rows
    if share > max_fault_share:
        raise UsageError(
            f"{result.source}: {share:.1%} of {result.rows} rows are no pairs ({counts}; first, "
            f"{result.first_fault}); mend the file or raise data.max_fault_share"
        )
