"""Sums over the tokens of each sample, for samples of different lengths laid end to end.

Shape suffixes: R response tokens of all samples, B samples.
"""

from torch import Tensor


def sum_per_sample(values_R: Tensor, sample_R: Tensor, samples: int) -> Tensor:
    """Sum ``values_R`` over the tokens of each sample, [B].

    ``sample_R`` holds the index of the sample that each token belongs to; a sample without tokens
    sums to 0.
    """
    return values_R.new_zeros(samples).index_add(0, sample_R, values_R)
