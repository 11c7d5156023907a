"""Do the loaded weights on this machine give the same bits in a batch as alone?"""

import random
from dataclasses import dataclass

import numpy as np

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.tiles import TILE

_LENGTHS = (1, 7, TILE - 1, TILE, TILE + 1, 2 * TILE + 17, 3 * TILE)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """``differing`` of ``compared`` scores had other bits in a batch than alone."""

    compared: int
    differing: int

    @property
    def passed(self) -> bool:
        return self.differing == 0


def self_test(model: RewardModel, *, seed: int = 0, rounds: int = 3) -> SelfTest:
    """Score sequences alone, then in random batches and behind shared prefixes; compare bits.

    Alone means one sequence per forward, nothing shared and nothing merged.
    """
    rng = random.Random(seed)
    sequences = _sequences(rng, model.encoder.vocab_size, model.contract.max_length)
    alone = [score_token_ids(model, [one], share_prefix=False)[0] for one in sequences]
    compared = differing = 0
    for _ in range(rounds):
        order = rng.sample(range(len(sequences)), len(sequences))
        batch = score_token_ids(model, [sequences[index] for index in order])
        wanted = [alone[index] for index in order]
        compared += len(order)
        differing += int((_bits(batch) != _bits(wanted)).sum())
    return SelfTest(compared, differing)


def _bits(scores: list[float]) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.asarray(scores, dtype=np.float32).view(np.uint32)


def _sequences(rng: random.Random, vocab_size: int, max_length: int) -> list[list[int]]:
    """Sequences of awkward lengths, half of them continuations of one prompt."""

    def tokens(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    prompt = tokens(2 * TILE + 5)
    sequences = [tokens(length) for length in _LENGTHS]
    sequences += [prompt + tokens(length) for length in _LENGTHS]
    return [sequence[:max_length] for sequence in sequences]
