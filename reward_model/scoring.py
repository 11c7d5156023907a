"""Scores for any number of sequences, one packed batch after another."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from reward_model.model import RewardModel
from reward_model.packing import shared_tokens

CPU_BATCH_TOKENS = 4096
"""What a CPU computes at once in 16 bits: more rows fill its products no better, and leave its
caches. A 30M-parameter decoder ran 1.05 times as fast with 4,096 rows as with 2,048, whose every
batch fetches the weights anew, and no faster with 8,192."""
CPU_SINGLE_BATCH_TOKENS = 3072
"""The same in 32 bits, where rows are twice as large. That decoder ran 1.03 times as fast with
3,072 as with 2,048 and MiniLM 1.02 to 1.04 times (Intel Xeon); 4,096 gained the decoder no more,
and lost a seventh where others used the same cache."""
CPU_QUICK_BATCH_TOKENS = 2048
"""Nearly as fast, and over in half the time: for a server with little to do."""
DEVICE_BATCH_TOKENS = 16384


def default_batch_tokens(device: torch.device | str, dtype: torch.dtype) -> int:
    """Tokens to compute in one forward where nobody says how many."""
    if torch.device(device).type != "cpu":
        return DEVICE_BATCH_TOKENS
    return CPU_BATCH_TOKENS if dtype.itemsize <= 2 else CPU_SINGLE_BATCH_TOKENS


def quick_batch_tokens(device: torch.device | str) -> int:
    """As many at most where others may come meanwhile and wait."""
    return CPU_QUICK_BATCH_TOKENS if torch.device(device).type == "cpu" else DEVICE_BATCH_TOKENS


BATCH_COST = 1 / 16
"""What a batch costs whatever is in it, as a share of its budget: 4 % on a CPU, more on a GPU."""


def first_batch(sequences: Iterable[Sequence[int]], budget: int, *, share_prefix: bool) -> int:
    """How many of the first sequences to compute at once: at least one.

    With ``share_prefix`` the tiles that a sequence has in common with the one before are not
    counted. Where not all fit the cut is where it costs least: between sequences that share a
    prefix, that would be computed twice. A first sequence over the budget stands alone.
    """
    best, least, filled = 1, float("inf"), 0
    before: Sequence[int] = ()
    count = 0
    for count, sequence in enumerate(sequences):
        shared = shared_tokens(before, sequence) if share_prefix and count else 0
        if count:
            penalty = shared + BATCH_COST * (budget - filled)
            if penalty <= least:
                best, least = count, penalty
            if filled + len(sequence) - shared > budget:
                return best
        filled += len(sequence) - shared
        before = sequence
    return count + 1


def batches(
    sequences: Sequence[Sequence[int]], max_batch_tokens: int, *, share_prefix: bool
) -> Iterator[range]:
    """Cut sequences, in their order, into runs of at most ``max_batch_tokens`` tokens to compute.

    A sequence that is longer than the budget makes a batch of its own.
    """
    start = 0
    while start < len(sequences):
        rest = (sequences[index] for index in range(start, len(sequences)))
        count = first_batch(rest, max_batch_tokens, share_prefix=share_prefix)
        yield range(start, start + count)
        start += count


@torch.inference_mode()
def score_token_ids(
    model: RewardModel,
    sequences: Sequence[Sequence[int]],
    *,
    max_batch_tokens: int | None = None,
    share_prefix: bool = True,
) -> list[float]:
    """Raw scores in the order of ``sequences``; each is what the sequence scores alone.

    Args:
        max_batch_tokens: tokens computed in one forward; by default what suits device and dtype.

    A score can be infinite or NaN where the model overflows: the caller decides what that means.
    """
    share_prefix = share_prefix and model.causal and model.obstacle is None
    budget = max_batch_tokens or default_batch_tokens(model.device, model.dtype)
    scores: list[float] = []
    before: Tensor | None = None  # read when the next batch is under way: a GPU does not wait
    for run in batches(sequences, budget, share_prefix=share_prefix):
        packed = model.pack([sequences[index] for index in run], share_prefix=share_prefix)
        rewards_N = model(packed).rewards_N
        scores += [] if before is None else before.tolist()
        before = rewards_N
    return scores + ([] if before is None else before.tolist())
