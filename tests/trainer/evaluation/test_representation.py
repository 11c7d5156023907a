import math

import pytest
import torch

from trainer.evaluation.representation import effective_rank, effective_rank_draws, norms


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 3)) == 0.0
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))


def test_it_is_uncentred() -> None:
    hidden = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert effective_rank(hidden + 100) < 1.2 < effective_rank(hidden)


def test_draws_use_equal_sizes_and_a_seed() -> None:
    hidden = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    first = effective_rank_draws(hidden, 10, draws=4, seed=1)
    assert first == effective_rank_draws(hidden, 10, draws=4, seed=1)
    assert first[0] < effective_rank(hidden)
    assert effective_rank_draws(hidden, 40, draws=2, seed=0)[1] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="41 rows"):
        effective_rank_draws(hidden, 41, draws=1, seed=0)


def test_norms() -> None:
    result = norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert (result.mean, result.std) == (3.0, 2.0)
    assert result.quantiles["0.50"] == 3.0
