"""Leave-one-out advantages (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740).

Shape suffixes: G groups, K samples of one prompt.
"""

import torch
from torch import Tensor


def leave_one_out(returns_GK: Tensor, finished_GK: Tensor) -> Tensor:
    """A_i = R_i - mean of R_j over the other finished samples j of the group, [G, K].

    With K finished samples A_i = K/(K-1) * (R_i - mean R). A sample that is not finished (it has
    no reward) is left out of every baseline and has advantage 0; its return is not read.

    Raises:
        ValueError: a group with fewer than two finished samples: there is no baseline.
    """
    finished_GK = finished_GK.bool()
    count_G1 = finished_GK.sum(1, keepdim=True)
    if bool((count_G1 < 2).any()):
        raise ValueError("leave-one-out needs at least two finished samples in every group")
    known_GK = returns_GK.where(finished_GK, torch.zeros_like(returns_GK))
    baseline_GK = (known_GK.sum(1, keepdim=True) - known_GK) / (count_G1 - 1)
    return (known_GK - baseline_GK).where(finished_GK, torch.zeros_like(known_GK))


def normalize(advantages_GK: Tensor, finished_GK: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(A - mean A) / (std A + epsilon) over the finished samples of the batch, as TRL does."""
    known = advantages_GK[finished_GK.bool()]
    scaled_GK = (advantages_GK - known.mean()) / (known.std() + epsilon)
    return scaled_GK.where(finished_GK.bool(), torch.zeros_like(advantages_GK))
