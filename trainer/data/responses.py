"""Prompts with responses of several models, with or without gold scores, from several forms.

Read are the project's scored format (see :mod:`trainer.data`), where ``gold`` may be missing; one
response per row, ``{"prompt", "response", "model", "gold"}``; and raw UltraFeedback,
``{"instruction", "completions": [{"model", "response", "fine-grained_score"}, …]}``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_model.errors import UsageError
from trainer.data.preferences import Conversation, RowError, parse_prompt
from trainer.data.rows import Row, read_rows


@dataclass(frozen=True, slots=True)
class Response:
    """A text, the model that wrote it, and its gold score if it has one."""

    model: str
    text: str
    gold: float | None = None

    def row(self) -> Row:
        row: Row = {"model": self.model, "text": self.text}
        return row if self.gold is None else row | {"gold": self.gold}


@dataclass(slots=True)
class PromptResponses:
    """A prompt and what was answered to it."""

    prompt_id: str
    prompt: Conversation
    responses: list[Response] = field(default_factory=list)

    def row(self) -> Row:
        """As a line of the scored format."""
        return {
            "prompt_id": self.prompt_id,
            "prompt": [dict(turn) for turn in self.prompt],
            "responses": [response.row() for response in self.responses],
        }


def prompt_key(prompt: Conversation) -> str:
    """Equal for prompts that differ in case and white space only."""
    return "\0".join(
        f"{turn['role']}:{' '.join(turn['content'].casefold().split())}" for turn in prompt
    )


def read_responses(
    sources: Sequence[str], *, split: str = "train"
) -> tuple[list[PromptResponses], int]:
    """All prompts of ``sources``, responses to the same prompt put together.

    Returns:
        The prompts in order of first appearance, and how many rows repeated a prompt.

    Raises:
        UsageError: nothing there, or a row in none of the forms; names source and row.
    """
    found: dict[str, PromptResponses] = {}
    repeated = 0
    for source in sources:
        for number, row in enumerate(read_rows(source, split), start=1):
            try:
                one = _parse(row, number)
            except RowError as fault:
                raise UsageError(f"{source}: row {number}: {fault}") from None
            key = prompt_key(one.prompt)
            if key in found:
                repeated += 1
                found[key].responses += one.responses
            else:
                found[key] = one
    if not found:
        raise UsageError(f"{', '.join(sources)}: no prompt in it")
    return list(found.values()), repeated


def _parse(row: Row | None, number: int) -> PromptResponses:
    if row is None:
        raise RowError("broken", "not a JSON object")
    name = str(row.get("prompt_id", row.get("id", number)))
    if isinstance(row.get("completions"), list):
        prompt = parse_prompt(row.get("instruction"))
        return PromptResponses(name, prompt, [_completion(one) for one in row["completions"]])
    prompt = parse_prompt(row.get("prompt"))
    if "responses" in row:
        if not isinstance(row["responses"], list):
            raise RowError("broken", "responses is not a list")
        return PromptResponses(name, prompt, [_response(one, "text") for one in row["responses"]])
    if "response" in row:
        return PromptResponses(name, prompt, [_response(row, "response")])
    return PromptResponses(name, prompt)


def _response(entry: Any, column: str) -> Response:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(column), str):
        raise RowError("broken", f"a response has no {column}")
    return Response(str(entry.get("model", "")), entry[column], _gold(entry.get("gold")))


def _completion(entry: Any) -> Response:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("response"), str):
        raise RowError("broken", "a completion has no response")
    # overall_score is known to be wrong in places; the mean of the four aspects is not.
    gold = entry.get("fine-grained_score", entry.get("overall_score"))
    return Response(str(entry.get("model", "")), entry["response"], _gold(gold))


def _gold(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError("broken", "a gold score is not a finite number")
    return float(value)
