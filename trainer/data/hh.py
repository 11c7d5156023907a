"""Dialogues as Anthropic's HH data sets write them: one text, turns marked ``Human:`` and
``Assistant:``."""

import re

from reward_model.encode import Message

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: str) -> bool:
    """Whether ``text`` is a dialogue of that form, ending with the assistant."""
    turns = parse_dialogue(text)
    return len(turns) > 1 and turns[0]["role"] == "user" and turns[-1]["role"] == "assistant"


def parse_dialogue(text: str) -> tuple[Message, ...]:
    """The turns of a dialogue, in order; nothing for a text that does not begin with a turn."""
    if not _TURN.match(text):
        return ()
    _, *parts = _TURN.split(text)
    return tuple(
        Message(role=_ROLES[speaker], content=content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )
