"""What the hidden states h look like: their effective rank and their norms.

h is what enters the last linear layer, one vector per response.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norms:
    """Distribution of ‖h‖ over responses."""

    mean: float
    std: float
    quantiles: dict[str, float]


def effective_rank(hidden_NH: Tensor) -> float:
    """erank(H) = exp(entropy of σ_j / Σσ) over the singular values of the uncentred N × H matrix.

    It depends on N: compare equal N only. Source: Roy & Vetterli, 2007. A zero matrix has none
    and gives 0.
    """
    singular = torch.linalg.svdvals(hidden_NH.double())
    total = singular.sum()
    if total == 0:
        return 0.0
    shares = singular / total
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(entropy.exp())


def effective_rank_draws(
    hidden_NH: Tensor, size: int, *, draws: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of :func:`effective_rank` over random subsets of ``size`` rows.

    Raises:
        ValueError: fewer rows than ``size``.
    """
    if size > len(hidden_NH):
        raise ValueError(f"{size} rows asked for, {len(hidden_NH)} there")
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.tensor(
        [
            effective_rank(hidden_NH[torch.randperm(len(hidden_NH), generator=generator)[:size]])
            for _ in range(draws)
        ]
    )
    return float(ranks.mean()), float(ranks.std(correction=0))


def norms(hidden_NH: Tensor) -> Norms:
    """Mean, standard deviation and quantiles of ‖h‖₂."""
    length = hidden_NH.double().norm(dim=1)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=length.dtype)
    values = torch.quantile(length, levels)
    named = {f"{level:.2f}": float(value) for level, value in zip(levels, values, strict=True)}
    return Norms(float(length.mean()), float(length.std(correction=0)), named)
