"""What can go wrong, as a tree.

SumzeroError                something the user can act on; its text is one line: what, where, remedy
├── UsageError              wrong settings, a missing file, an empty data set: exit code 2
│   └── CheckpointError     a directory that cannot be served or trained as a reward model
└── ItemError               one item that cannot be scored; its neighbours are unharmed
"""

from typing import Literal

ItemErrorType = Literal[
    "too_long", "empty", "invalid_token_id", "template_failed", "not_finite", "out_of_memory"
]


class SumzeroError(Exception):
    """Base of every error whose message is meant for the user."""


class UsageError(SumzeroError):
    """The command was given something it cannot work with."""


class CheckpointError(UsageError):
    """A checkpoint directory lacks something a reward model needs."""


class ItemError(SumzeroError):
    """One item has no score. ``type`` is the machine-readable reason."""

    def __init__(self, type: ItemErrorType, message: str) -> None:
        super().__init__(message)
        self.type: ItemErrorType = type
        self.message = message
