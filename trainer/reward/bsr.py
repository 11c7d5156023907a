"""Batch-wise sum-to-zero regularisation of a batch that is computed in pieces.

The penalty λ·M² of :func:`trainer.reward.losses.bsr_penalty` is not a sum over micro-batches or
ranks, but its gradient is: ∂(λM²)/∂r = λ·M/|B| for every reward. So each piece contributes the
surrogate 2λ·sg(M)·m_piece, m_piece = Σ_piece r / (2|B|), whose gradient is exactly that, once M of
the whole batch is known.

Which rewards M is taken over (``scope``) and whether λ grows with their number (``scale``) are
part of the objective. With independent pairs E[M²] = μ² + v/n over n pairs, v the variance of pair
means (r_w + r_l)/2, so an arm weighs μ² by λ_applied and v by λ_applied/n: :func:`weights`.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Scope = Literal["global", "device", "micro"]
Scale = Literal["paper", "reference"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a penalty weighs on the squared mean of rewards, and on the variance of pair means."""

    squared_mean: float
    pair_variance: float


def applied_lambda(lambda_: float, scale: Scale, pairs: int) -> float:
    """λ as it enters the objective.

    ``paper``: λ. ``reference``: λ × ``pairs``, the number of pairs that M is taken over, which is
    what the published code does with its per-device micro-batch.
    """
    return lambda_ * pairs if scale == "reference" else lambda_


def weights(lambda_: float, scale: Scale, pairs: int) -> Weights:
    """The weights of λ_applied·M² when M is taken over ``pairs`` pairs."""
    applied = applied_lambda(lambda_, scale, pairs)
    return Weights(squared_mean=applied, pair_variance=applied / pairs)


def surrogate(chosen_B: Tensor, rejected_B: Tensor, mean: Tensor, total_pairs: int) -> Tensor:
    """2·sg(M)·m_piece, a scalar with the gradient of this piece's part of M².

    Args:
        chosen_B: r_w of the pairs of one piece, [B].
        rejected_B: r_l of the same, [B].
        mean: M, over all that the scope covers.
        total_pairs: pairs of the whole optimiser batch. When the scope covers only a part with n
            pairs, the objective is the mean of the parts' penalties weighted by n/|B|, and the
            part's 2·sg(M)·Σr/(2n) · n/|B| is this same expression.
    """
    piece_mean = (chosen_B.sum() + rejected_B.sum()) / (2 * total_pairs)
    return 2 * mean.detach() * piece_mean
