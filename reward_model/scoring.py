"""Scores for any number of sequences, one packed batch after another."""

from collections.abc import Iterator, Sequence

import torch

from reward_model.model import RewardModel

DEFAULT_BATCH_TOKENS = 16384


def batches(
    lengths: Sequence[int], max_batch_tokens: int, *, max_items: int | None = None
) -> Iterator[range]:
    """Cut sequences, in their order, into runs of at most ``max_batch_tokens`` tokens.

    A sequence that is longer than the budget makes a batch of its own.
    """
    start, tokens = 0, 0
    for index, length in enumerate(lengths):
        full = tokens + length > max_batch_tokens or (max_items and index - start >= max_items)
        if index > start and full:
            yield range(start, index)
            start, tokens = index, 0
        tokens += length
    if start < len(lengths):
        yield range(start, len(lengths))


@torch.inference_mode()
def score_token_ids(
    model: RewardModel,
    sequences: Sequence[Sequence[int]],
    *,
    max_batch_tokens: int = DEFAULT_BATCH_TOKENS,
    share_prefix: bool = True,
) -> list[float]:
    """Raw scores in the order of ``sequences``; each is what the sequence scores alone.

    A score can be infinite or NaN where the model overflows: the caller decides what that means.
    """
    scores: list[float] = []
    for run in batches([len(sequence) for sequence in sequences], max_batch_tokens):
        packed = model.pack([sequences[index] for index in run], share_prefix=share_prefix)
        scores += model(packed).rewards_N.tolist()
    return scores
