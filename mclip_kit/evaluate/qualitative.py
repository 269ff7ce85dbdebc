"""What a report shows besides numbers: the best and the worst queries, and which pictures and languages are confused.

Shapes: Q captions, G pictures, D embedding, L languages, B captions of a block.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mclip_kit.data.captions import Captions
from mclip_kit.evaluate.base import SEED
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.gallery import ConfusedPair, QueryResult
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip

MOST = 4000  # captions that are embedded; of more captions, some are drawn
BLOCK = 512
SIDE = 512  # pictures are shrunk to this side, in pixels


@dataclass(frozen=True)
class EmbeddedSplit:
    """The pictures of a split and some of its captions, embedded.

    Attributes:
        images_G, image_GD: readable pictures, as rows of the picture table, and their embeddings.
        rows_Q, text_QD: captions, as rows of the caption table, and their embeddings.
    """

    captions: Captions
    images_G: np.ndarray
    image_GD: np.ndarray
    rows_Q: np.ndarray
    text_QD: np.ndarray


def embedded(
    model: MultilingualClip,
    captions: Captions,
    split: str,
    languages: Sequence[str],
    cache: FeatureCache | None = None,
    most: int = MOST,
    seed: int = SEED,
) -> EmbeddedSplit:
    """Embed the pictures of a split and about `most` of its captions; of a picture, all captions or none.

    Non-finite embeddings and pictures that cannot be read are left out.
    """
    rows = captions.select(split, languages)
    embed = Embedder(model, cache or FeatureCache())
    images_G = captions.gallery(split)
    image_GD, unreadable_G = embed.images(captions, images_G)
    images_G, image_GD = images_G[~unreadable_G], image_GD[~unreadable_G]
    drawn = np.intersect1d(captions.images[rows], images_G)
    if len(rows) > most:
        fewer = max(2, len(drawn) * most // len(rows))
        drawn = np.random.default_rng(seed).permutation(drawn)[:fewer]
    rows_Q = rows[np.isin(captions.images[rows], drawn)]
    text_QD = embed.student([str(text) for text in captions.texts[rows_Q]])
    finite_Q, finite_G = np.isfinite(text_QD).all(1), np.isfinite(image_GD).all(1)
    return EmbeddedSplit(captions, images_G[finite_G], image_GD[finite_G], rows_Q[finite_Q], text_QD[finite_Q])


def margins(text_QD: np.ndarray, image_GD: np.ndarray, groups_Q: np.ndarray, groups_G: np.ndarray) -> np.ndarray:
    """Cosine of the nearest right picture minus that of the nearest wrong one; float32 (Q,).

    inf where there is no wrong picture, -inf where there is no right one.
    """
    margins_Q = np.empty(len(text_QD), np.float32)
    for start in range(0, len(text_QD), BLOCK):
        part = slice(start, start + BLOCK)
        scores_BG = text_QD[part] @ image_GD.T
        right_BG = groups_Q[part, None] == groups_G
        right_B = np.where(right_BG, scores_BG, -np.inf).max(1, initial=-np.inf)
        wrong_B = np.where(right_BG, -np.inf, scores_BG).max(1, initial=-np.inf)
        margins_Q[part] = np.where(np.isneginf(right_B), -np.inf, right_B - np.where(right_B > -np.inf, wrong_B, 0))
    return margins_Q


def extremes(found: EmbeddedSplit, count: int = 4, top: int = 5) -> tuple[list[QueryResult], list[QueryResult]]:
    """The best and the worst queries by margin, each with the first `top` pictures that it finds.

    The queries of a list have different languages as far as possible, and different right pictures.
    """
    captions, images_Q = found.captions, found.captions.images[found.rows_Q]
    groups_Q, groups_G = captions.groups[images_Q], captions.groups[found.images_G]
    margins_Q = margins(found.text_QD, found.image_GD, groups_Q, groups_G)
    languages_Q = captions.languages[found.rows_Q]
    known_Q = np.flatnonzero(np.isfinite(margins_Q))
    order = known_Q[np.argsort(-margins_Q[known_Q], kind="stable")]

    def first(order: np.ndarray) -> list[QueryResult]:
        chosen: list[int] = []
        for once in (True, False):
            for query in order.tolist():
                taken = languages_Q[chosen] if once else ()
                if len(chosen) == count or languages_Q[query] in taken or groups_Q[query] in groups_Q[chosen]:
                    continue
                chosen.append(query)
        return [_query_result(found, query, top) for query in chosen]

    return first(order), first(order[::-1])


def random_queries(found: EmbeddedSplit, languages: Sequence[str], top: int = 5, seed: int = SEED) -> list[QueryResult]:
    """One query of each language, drawn at random whether it succeeds or not, and the first pictures that it finds."""
    draw, captions = np.random.default_rng(seed), found.captions
    rows = []
    for language in languages:
        own = np.flatnonzero(captions.languages[found.rows_Q] == language)
        if len(own):
            rows.append(_query_result(found, int(own[draw.integers(len(own))]), top))
    return rows


def _query_result(found: EmbeddedSplit, query: int, top: int) -> QueryResult:
    best = np.argsort(-(found.image_GD @ found.text_QD[query]), kind="stable")[:top]
    captions, row = found.captions, found.rows_Q[query]
    right = captions.groups[found.images_G[best]] == captions.groups[captions.images[row]]
    return QueryResult(
        str(captions.languages[row]),
        str(captions.texts[row]),
        [small_picture(captions, int(image)) for image in found.images_G[best]],
        [bool(hit) for hit in right],
    )


def small_picture(captions: Captions, image: int) -> np.ndarray:
    """A picture of the table, shrunk; uint8 (S, S, 3)."""
    picture = captions.picture(image)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def confused_pairs(found: EmbeddedSplit, count: int = 8) -> tuple[list[ConfusedPair], dict[str, np.ndarray]]:
    """The wrong pictures that the captions of a picture find first most often, and the pictures by their names.

    Pictures of the same group count as one. Equal counts are in the order of the picture table.
    """
    captions, images_Q = found.captions, found.captions.images[found.rows_Q]
    groups_Q, groups_G = captions.groups[images_Q], captions.groups[found.images_G]
    first_Q = nearest_pictures(found)
    of_group = Counter(groups_Q.tolist())
    wrong_Q = np.flatnonzero(groups_G[first_Q] != groups_Q)
    queries: dict[tuple[int, int], list[int]] = {}
    for query in wrong_Q.tolist():
        queries.setdefault((groups_Q[query], groups_G[first_Q[query]]), []).append(query)
    chosen = sorted(queries.values(), key=len, reverse=True)[:count]
    pairs: list[ConfusedPair] = []
    pictures: dict[str, np.ndarray] = {}
    for own in chosen:
        images = int(images_Q[own[0]]), int(found.images_G[first_Q[own[0]]])
        pictures |= {str(captions.names[image]): small_picture(captions, image) for image in images}
        rows = found.rows_Q[own]
        languages = list(dict.fromkeys(captions.languages[rows].tolist()))
        names = [str(captions.names[image]) for image in images]
        size = of_group[int(groups_Q[own[0]])]
        text = str(captions.texts[rows[0]])
        pairs.append(ConfusedPair(names[0], names[1], len(own), size, languages, languages[0], text))
    return pairs, pictures


def nearest_pictures(found: EmbeddedSplit) -> np.ndarray:
    """The number of the picture that each caption finds first, int64 (Q,)."""
    blocks = [found.text_QD[start : start + BLOCK] for start in range(0, len(found.text_QD), BLOCK)]
    return np.concatenate([(block @ found.image_GD.T).argmax(1) for block in blocks] or [np.empty(0, np.int64)])


def confusion(text_QD: np.ndarray, languages_Q: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The language of each caption's nearest other caption.

    If embeddings do not depend on the language, the nearest captions are translations of the caption; if they do, the
    diagonal is near 1. Captions that are equally near share the count.

    Returns:
        Languages (L), and shares (L, L): a row sums to 1, or is zero if its captions have no other caption.
    """
    names, codes_Q = np.unique(languages_Q, return_inverse=True)
    kind_QL = np.eye(len(names))[codes_Q]
    shares_LL = np.zeros((len(names), len(names)))
    for start in range(0, len(text_QD), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(text_QD)))
        scores_BQ = text_QD[rows] @ text_QD.T
        scores_BQ[np.arange(len(rows)), rows] = -np.inf
        near_BQ = np.isfinite(scores_BQ) & (scores_BQ >= scores_BQ.max(1, keepdims=True) - 1e-6)
        counts_BL = near_BQ.astype(np.float64) @ kind_QL
        np.add.at(shares_LL, codes_Q[rows], counts_BL / np.maximum(counts_BL.sum(1, keepdims=True), 1))
    sums_L = shares_LL.sum(1, keepdims=True)
    return [str(name) for name in names], np.divide(shares_LL, sums_L, out=shares_LL, where=sums_L > 0)
