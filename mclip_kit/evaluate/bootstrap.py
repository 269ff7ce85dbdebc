"""Whether one tower is better than another, or luckier with its pictures: paired bootstrap intervals.

Both answer the same queries, so it is the difference of their answers that is resampled (paired). Captions of a picture
stand or fall together, so pictures are drawn, with replacement and each with all of its queries, and not queries
(clusters); pictures that look the same are one. The interval goes from the 2.5th to the 97.5th percentile of the
resampled differences: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile
intervals) and section 8.3 (what to resample).

N pictures, Q queries, M means, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mclip_kit.errors import DataError
from mclip_kit.evaluate.ranks import KS
from mclip_kit.evaluate.retrieval import Retrieval

RESAMPLES = 2000
CELLS = 2**22  # pictures times resamples that are drawn at once
METRICS = {
    "image_retrieval_recall@1": [0],  # of the recalls that `_differences` lists
    "text_retrieval_recall@1": [len(KS)],
    "mean_recall": list(range(2 * len(KS))),
}
"""What is compared, by clip-benchmark's names -> the recalls whose mean it is."""

Values = tuple[np.ndarray, np.ndarray]
"""A number per query (Q,), and the query's picture (Q,)."""


@dataclass(frozen=True)
class Difference:
    """How much better a tower is than another in one language, as a fraction, and the interval about it.

    Attributes:
        language: its code; `mean` is the mean over all.
    """

    language: str
    metric: str
    difference: float
    low: float
    high: float


def compare(
    ours: Mapping[str, Retrieval], theirs: Mapping[str, Retrieval], resamples: int = RESAMPLES, seed: int = 1
) -> list[Difference]:
    """95% intervals of R@1 both ways and of mean recall, ours less theirs, by language and for the languages' mean.

    Args:
        ours, theirs: language -> ranks of the same queries; languages that only one of them has are left out.
        resamples: how many times the pictures are drawn; the same draws serve every language.
        seed: of the draws.
    Raises:
        DataError: there are fewer than two pictures, which leaves nothing to draw.
    """
    languages = [language for language in ours if language in theirs and language != "teacher"]
    means = [values for language in languages for values in _differences(ours[language], theirs[language])]
    observed_M, resampled_RM = means_of(means), resampled_means(means, resamples, seed)
    each = 2 * len(KS)
    parts = {language: [each * place] for place, language in enumerate(languages)}
    if len(languages) > 1:
        parts["mean"] = list(range(0, len(means), each))
    found = []
    for language, starts in parts.items():
        for metric, recalls in METRICS.items():
            columns = [start + recall for start in starts for recall in recalls]
            low, high = np.nanpercentile(resampled_RM[:, columns].mean(1), [2.5, 97.5])
            difference = observed_M[columns].mean()
            found.append(Difference(language, metric, float(difference), float(low), float(high)))
    return found


def _differences(ours: Retrieval, theirs: Retrieval) -> list[Values]:
    """By query, of R@1, R@5 and R@10 of pictures, then of texts: 1 where only ours is right, -1 where only theirs."""
    ways = [(ours.t2i_Q, theirs.t2i_Q, ours.groups_Q), (ours.i2t_G, theirs.i2t_G, ours.groups_G)]
    assert np.array_equal(ours.groups_Q, theirs.groups_Q)
    assert np.array_equal(ours.groups_G, theirs.groups_G)
    return [((a <= k).astype(float) - (b <= k), pictures) for a, b, pictures in ways for k in KS]


def means_of(means: Sequence[Values]) -> np.ndarray:
    """The mean of each item's values, (M,)."""
    return np.array([values_Q.mean() for values_Q, _ in means])


def resampled_means(means: Sequence[Values], resamples: int, seed: int) -> np.ndarray:
    """The same means in each resample of pictures, (R, M); NaN where a resample has none of an item's queries.

    A picture that is drawn n times counts n times, with its queries in every item.
    """
    pictures = np.unique(np.concatenate([pictures_Q for _, pictures_Q in means]))
    N = len(pictures)
    if N < 2:
        raise DataError(f"an interval needs two pictures at least; {N} was scored")
    places = [np.searchsorted(pictures, pictures_Q) for _, pictures_Q in means]
    sums = [np.bincount(place, values_Q, N) for place, (values_Q, _) in zip(places, means, strict=True)]
    sums_NM = np.stack(sums, axis=1)
    counts_NM = np.stack([np.bincount(place, minlength=N) for place in places], axis=1).astype(float)
    draw = np.random.default_rng(seed)
    out_RM = np.empty((resamples, len(means)))
    for start in range(0, resamples, step := max(1, CELLS // N)):
        B = min(step, resamples - start)
        drawn_BN = draw.integers(N, size=(B, N)) + N * np.arange(B)[:, None]
        times_BN = np.bincount(drawn_BN.ravel(), minlength=B * N).reshape(B, N).astype(float)
        with np.errstate(invalid="ignore"):
            out_RM[start : start + B] = (times_BN @ sums_NM) / (times_BN @ counts_NM)
    return out_RM
