"""Exact results of earlier requests, bounded by memory.

A score depends on the model's version and the token ids alone (that is what exactness means), so
these two are the key. The key kept is a 256-bit digest of them.
"""

from array import array
from collections import OrderedDict
from hashlib import blake2b

from service.scorer import TokenIds

ENTRY_BYTES = 256
"""Memory of one entry, rounded up: digest, float, and their places in the table."""


def digest(model_version: str, token_ids: TokenIds) -> bytes:
    """The cache key of one sequence under one version of a model."""
    return blake2b(
        array("q", token_ids).tobytes(), digest_size=32, key=model_version.encode()[-64:]
    ).digest()


class ResultCache:
    """Least recently used out first. ``max_bytes`` 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_entries = max_bytes // ENTRY_BYTES
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def get(self, key: bytes) -> float | None:
        score = self._scores.get(key)
        if score is not None:
            self._scores.move_to_end(key)
        return score

    def put(self, key: bytes, score: float) -> None:
        if self._max_entries == 0:
            return
        self._scores[key] = score
        self._scores.move_to_end(key)
        if len(self._scores) > self._max_entries:
            self._scores.popitem(last=False)

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def num_bytes(self) -> int:
        return len(self._scores) * ENTRY_BYTES
