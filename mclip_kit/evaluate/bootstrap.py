"""How sure are the scores of a tower, and is one better than another or is it chance? Bootstrap intervals.

Two towers answer the same queries, so the difference of their answers is resampled (paired). The captions of a picture
are not independent, so pictures are drawn, not queries: with replacement, each with all of its queries (clusters).
Pictures that look the same count as one. The interval goes from the 2.5th to the 97.5th percentile of the resampled
differences: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals) and section
8.3 (what to resample).

Shapes: N pictures, Q queries, M means, R resamples, B resamples of a block.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mclip_kit.errors import DataError
from mclip_kit.evaluate.base import SEED, Metric
from mclip_kit.evaluate.ranks import KS
from mclip_kit.evaluate.retrieval import COMPARED, MEAN_RECALL, RECALLS, TEACHER, Retrieval
from mclip_kit.progress import SOON, tqdm

RESAMPLES = 2000
CELLS = 2**22  # pictures times resamples that are drawn at once

Values = tuple[np.ndarray, np.ndarray]
"""A number per query (Q,), and the query's picture (Q,)."""


@dataclass(frozen=True)
class Difference:
    """How much better a tower is than another in one language, and the 95% interval, as fractions.

    Attributes:
        language: its code; `mean` is the mean over all languages.
        metric: a name of `retrieval.COMPARED`.
    """

    language: str
    metric: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """The 95% interval of a score, as fractions.

    Attributes:
        languages: whose mean it is; one, or several.
        metric: a name of `retrieval.COMPARED`.
    """

    languages: tuple[str, ...]
    metric: str
    low: float
    high: float


def intervals(
    results: Mapping[str, Retrieval], groups: Sequence[Sequence[str]], resamples: int = RESAMPLES, seed: int = SEED
) -> list[Interval]:
    """Intervals of `retrieval.COMPARED`, of the mean over each group of languages; none of fewer than two pictures.

    They say how much a score depends on which pictures are in the test set; not how much it depends on the seed of the
    training, which only other trainings can say.

    Args:
        groups: languages of `results`; empty groups are left out.
        resamples: how many times the pictures are drawn; all languages use the same draws.
        seed: of the draws.
    """
    values = {language: _answers(own) for language, own in results.items()}
    pictures = {picture for parts in values.values() for _, pictures_Q in parts for picture in pictures_Q.tolist()}
    if len(pictures) < 2:
        return []
    found = _estimates(values, [tuple(group) for group in groups if group], resamples, seed)
    return [Interval(group, metric.name, low, high) for group, metric, _, low, high in found]


def compare(
    ours: Mapping[str, Retrieval], theirs: Mapping[str, Retrieval], resamples: int = RESAMPLES, seed: int = SEED
) -> list[Difference]:
    """Differences of `retrieval.COMPARED`, ours minus theirs, of each language and of the mean over languages.

    Args:
        ours, theirs: language -> ranks of the same queries; languages that only one of them has are left out.
        resamples: how many times the pictures are drawn; all languages use the same draws.
        seed: of the draws.
    Raises:
        DataError: there are fewer than two pictures.
    """
    languages = tuple(language for language in ours if language in theirs and language != TEACHER)
    values = {language: _differences(ours[language], theirs[language]) for language in languages}
    groups = [(language,) for language in languages] + ([languages] if len(languages) > 1 else [])
    return [
        Difference(group[0] if len(group) == 1 else "mean", metric.name, difference, low, high)
        for group, metric, difference, low, high in _estimates(values, groups, resamples, seed)
    ]


def _estimates(
    values: Mapping[str, Sequence[Values]], groups: Sequence[tuple[str, ...]], resamples: int, seed: int
) -> Iterator[tuple[tuple[str, ...], Metric, float, float, float]]:
    """Of each group of languages and each of `retrieval.COMPARED`: the mean, and its interval.

    Args:
        values: language -> for each of `RECALLS`, a value per query.
    """
    means = [value for own in values.values() for value in own]
    starts = {language: place * len(RECALLS) for place, language in enumerate(values)}
    observed_M, resampled_RM = means_of(means), resampled_means(means, resamples, seed)
    for group in groups:
        for metric in COMPARED:
            recalls = range(len(RECALLS)) if metric is MEAN_RECALL else [RECALLS.index(metric)]
            columns = [starts[language] + recall for language in group for recall in recalls]
            low, high = np.nanpercentile(resampled_RM[:, columns].mean(1), [2.5, 97.5])
            yield group, metric, float(observed_M[columns].mean()), float(low), float(high)


def _answers(found: Retrieval) -> list[Values]:
    """For each of `RECALLS`, a value per query: 1 if it is right, else 0."""
    ways = [(found.t2i_Q, found.groups_Q), (found.i2t_G, found.groups_G)]
    return [((ranks <= k).astype(float), pictures) for ranks, pictures in ways for k in KS]


def _differences(ours: Retrieval, theirs: Retrieval) -> list[Values]:
    """For each of `RECALLS`, a value per query: 1 where only ours is right, -1 where only theirs is, else 0."""
    assert np.array_equal(ours.groups_Q, theirs.groups_Q)
    assert np.array_equal(ours.groups_G, theirs.groups_G)
    pairs = zip(_answers(ours), _answers(theirs), strict=True)
    return [(mine - other, pictures) for (mine, pictures), (other, _) in pairs]


def means_of(means: Sequence[Values]) -> np.ndarray:
    """The mean of each item's values, float64 (M,)."""
    return np.array([values_Q.mean() for values_Q, _ in means])


def resampled_means(means: Sequence[Values], resamples: int, seed: int) -> np.ndarray:
    """The means of each resample of the pictures, (R, M); NaN where a resample has no query of an item.

    A picture that is drawn n times counts n times, with its queries in every item.

    Raises:
        DataError: there are fewer than two pictures.
    """
    pictures = np.unique(np.concatenate([pictures_Q for _, pictures_Q in means]))
    N = len(pictures)
    if N < 2:
        raise DataError(f"a bootstrap interval needs at least two pictures; {N} was scored: leave out --baseline")
    places = [np.searchsorted(pictures, pictures_Q) for _, pictures_Q in means]
    sums = [np.bincount(place, values_Q, N) for place, (values_Q, _) in zip(places, means, strict=True)]
    sums_NM = np.stack(sums, axis=1)
    counts_NM = np.stack([np.bincount(place, minlength=N) for place in places], axis=1).astype(float)
    draw = np.random.default_rng(seed)
    out_RM = np.empty((resamples, len(means)))
    starts = range(0, resamples, step := max(1, CELLS // N))
    for start in tqdm(starts, "bootstrap", unit="block", leave=False, delay=SOON):
        B = min(step, resamples - start)
        drawn_BN = draw.integers(N, size=(B, N)) + N * np.arange(B)[:, None]
        times_BN = np.bincount(drawn_BN.ravel(), minlength=B * N).reshape(B, N).astype(float)
        with np.errstate(invalid="ignore"):
            out_RM[start : start + B] = (times_BN @ sums_NM) / (times_BN @ counts_NM)
    return out_RM
