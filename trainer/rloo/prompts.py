"""Prompts: read, rendered in the policy's template, cut where they are too long, and ordered."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from reward_model.encode import Message
from reward_model.errors import UsageError
from trainer.data.rows import Row, read_rows
from trainer.rloo.samples import Prompt

ROLES = frozenset({"system", "user", "assistant", "tool"})


@dataclass(frozen=True)
class PromptSet:
    """The prompts that are short enough, and how many were not."""

    prompts: tuple[Prompt, ...]
    too_long: int
    cut: int

    def __len__(self) -> int:
        return len(self.prompts)


class PromptEncoder:
    """Turns a conversation into the tokens that the policy continues: template, then the header.

    Args:
        max_tokens: of a prompt, header included.
        long_prompts: ``skip`` gives None for a longer one; ``cut`` drops tokens on the left of the
            last user message, so that neither another turn nor the assistant's header suffers.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        long_prompts: Literal["skip", "cut"] = "skip",
    ) -> None:
        if not tokenizer.chat_template:
            raise UsageError("policy: its tokenizer has no chat template; use a chat model")
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._cuts = long_prompts == "cut"

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...] | None:
        """Token ids of the prompt, or None where it is too long."""
        ids = self._render(messages)
        if len(ids) <= self._max_tokens:
            return ids
        return self._cut(messages, len(ids) - self._max_tokens) if self._cuts else None

    def _render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        text = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _cut(self, messages: Sequence[Message], excess: int) -> tuple[int, ...] | None:
        place = max(n for n, message in enumerate(messages) if message["role"] == "user")
        content = self._tokenizer(
            messages[place]["content"], add_special_tokens=False, verbose=False
        )["input_ids"]
        while excess < len(content):
            kept = self._tokenizer.decode(content[excess:])
            shorter = [
                *messages[:place],
                Message(role="user", content=kept),
                *messages[place + 1 :],
            ]
            ids = self._render(shorter)
            if len(ids) <= self._max_tokens:
                return ids
            excess += len(ids) - self._max_tokens
        return None


def read_prompts(
    path: Path, encoder: PromptEncoder, *, name: str = "prompts", limit: int | None = None
) -> PromptSet:
    """The prompts of a JSON-lines or Parquet file, in its order.

    A row is ``{"prompt": text or messages}``; ``{"messages": [...]}`` is read up to the last turn
    that is not the assistant's. Other columns are ignored.

    Raises:
        UsageError: no such file, a row that is no prompt, or none that is short enough.
    """
    prompts: list[Prompt] = []
    too_long = cut = 0
    for number, row in enumerate(read_rows(str(path)), start=1):
        if limit is not None and len(prompts) == limit:
            break
        messages = _messages(row, f"{name}: {path}:{number}")
        ids = encoder.encode(messages)
        if ids is None:
            too_long += 1
            continue
        prompts.append(Prompt(len(prompts), messages, ids))
    if not prompts:
        raise UsageError(f"{name}: {path}: no prompt in it that is short enough")
    return PromptSet(tuple(prompts), too_long, cut)


@lru_cache(maxsize=8)
def order(seed: int, epoch: int, prompts: int) -> tuple[int, ...]:
    """The order of the prompts in one epoch: a permutation set by seed and epoch."""
    indices = list(range(prompts))
    random.Random(f"{seed}/{epoch}").shuffle(indices)
    return tuple(indices)


def _messages(row: Row | None, where: str) -> tuple[Message, ...]:
    value: Any = None if row is None else row.get("prompt", row.get("messages"))
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    try:
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in turns]
    except (TypeError, KeyError):
        raise UsageError(f'{where}: expected {{"prompt": text, or a list of messages}}') from None
    if row is not None and "prompt" not in row:
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
    if not all(m["role"] in ROLES and isinstance(m["content"], str) for m in messages):
        raise UsageError(f"{where}: every message needs a known role and a text as content")
    if not messages or messages[-1]["role"] == "assistant" or not messages[-1]["content"].strip():
        raise UsageError(f"{where}: a prompt must end with a turn to be answered")
    if not any(message["role"] == "user" for message in messages):
        raise UsageError(f"{where}: a prompt needs a turn of the user")
    return tuple(messages)
