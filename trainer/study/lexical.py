"""A reward without a language model, r = w · f(text): Bradley-Terry on word n-grams and style.

What it reaches is what surface alone explains; a trained backbone is judged by what it adds.
"""

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, hstack, vstack
from scipy.special import expit

Array = NDArray[np.float64]

BUCKETS = 2**16
"""N-grams are hashed into so many features."""
WORD = re.compile(r"\w+|[^\w\s]")
STYLE = (
    re.compile(r"\n"),
    re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE),
    re.compile(r"\*\*"),
    re.compile(r"```"),
    re.compile(r"\d"),
    re.compile(r"\?"),
    re.compile(r"!"),
)


class Features:
    """f(text): hashed uni- and bigrams, weighted 1 + log(count) and of norm 1; and style (log
    length, and log counts of lines, list items, bold, code, digits, question and exclamation
    marks), each divided by its standard deviation over the pairs' differences.

    Args:
        chosen, rejected: texts of the pairs.
    """

    def __init__(self, chosen: Sequence[str], rejected: Sequence[str]) -> None:
        self._scale_S = np.maximum((_style(chosen) - _style(rejected)).std(axis=0), 1e-9)

    def __call__(self, texts: Sequence[str]) -> csr_matrix:
        """[N, F]"""
        return csr_matrix(hstack([_ngrams(texts), csr_matrix(_style(texts) / self._scale_S)]))


def fit(difference_PF: csr_matrix, penalty: float) -> Array:
    """argmin_w  mean log(1 + exp(−d · w)) + ½ · penalty · ‖w‖², over pairs' feature differences d.

    Returns:
        [F]
    """
    pairs, features = difference_PF.shape
    # What no pair differs in keeps weight 0.
    differing_G = np.unique(difference_PF.indices)
    difference_PG = difference_PF[:, differing_G]

    def loss(weights_G: Array) -> tuple[float, Array]:
        margin_P = difference_PG @ weights_G
        value = np.logaddexp(0.0, -margin_P).mean() + penalty / 2 * (weights_G @ weights_G)
        slope_G = -(difference_PG.T @ expit(-margin_P)) / pairs + penalty * weights_G
        return float(value), slope_G

    weights_F = np.zeros(features)
    weights_F[differing_G] = minimize(
        loss, np.zeros(len(differing_G)), jac=True, method="L-BFGS-B"
    ).x
    return weights_F


def _ngrams(texts: Sequence[str]) -> csr_matrix:
    rows = []
    for text in texts:
        words = WORD.findall(text.lower())
        counts = Counter(words) + Counter(map(" ".join, itertools.pairwise(words)))
        hashed: dict[int, float] = {}
        for ngram, count in counts.items():
            place = zlib.crc32(ngram.encode()) % BUCKETS
            hashed[place] = hashed.get(place, 0.0) + 1 + math.log(count)
        norm = math.sqrt(sum(x * x for x in hashed.values())) or 1.0
        places = np.fromiter(hashed, dtype=np.int64, count=len(hashed))
        weights = np.array(list(hashed.values()), dtype=float) / norm
        rows.append(csr_matrix((weights, (np.zeros_like(places), places)), shape=(1, BUCKETS)))
    return csr_matrix(vstack(rows))


def _style(texts: Sequence[str]) -> Array:
    """[N, S]"""
    return np.array(
        [
            [math.log1p(len(text)), *(math.log1p(len(mark.findall(text))) for mark in STYLE)]
            for text in texts
        ]
    )
