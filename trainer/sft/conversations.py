"""Conversations to train on."""

from collections.abc import Mapping
from typing import Any

from reward_model.encode import Message
from reward_model.errors import UsageError
from trainer.data.preferences import RowError, parse_pair
from trainer.data.rows import Row, read_rows


def read_conversations(source: str, split: str = "train") -> list[list[Message]]:
    """The ``messages`` of every row, or prompt and chosen response of a preference pair.

    Each conversation ends with the assistant.

    Args:
        source: a JSONL or Parquet file, or a hub name; see :func:`trainer.data.rows.read_rows`.

    Raises:
        UsageError: no such file, no rows, or a row that is not a conversation, by its number.
    """
    conversations = [
        _conversation(row, f"train: {source}: row {number}")
        for number, row in enumerate(read_rows(source, split), start=1)
    ]
    if not conversations:
        raise UsageError(f"train: {source}: no conversations in it")
    return conversations


def _conversation(row: Row | None, where: str) -> list[Message]:
    if row is not None and "chosen" in row:
        return _chosen(row, where)
    turns = (row or {}).get("messages")
    if not isinstance(turns, list) or not turns:
        raise UsageError(f'{where}: expected {{"messages": [{{"role": …, "content": …}}, …]}}')
    messages = [_message(turn, where) for turn in turns]
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise UsageError(f"{where}: a conversation must end with the assistant's answer")
    return messages


def _chosen(row: Row, where: str) -> list[Message]:
    try:
        chosen = parse_pair(row).chosen
    except RowError as fault:
        raise UsageError(f"{where}: {fault}") from None
    if isinstance(chosen, str):
        raise UsageError(f"{where}: chosen is text without turns")
    return list(chosen)


def _message(turn: Any, where: str) -> Message:
    role, content = (
        (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    )
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"{where}: every message needs a role and a text as content")
    return Message(role=role, content=content)
