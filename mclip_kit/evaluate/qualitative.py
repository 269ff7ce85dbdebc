"""What a report shows beside numbers: the best and the worst queries, and which languages lie beside which.

Shapes: Q captions, G pictures, D embedding, L languages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mclip_kit.data.captions import Captions
from mclip_kit.evaluate.report.contact_sheet import Row
from mclip_kit.evaluate.retrieval import Embedder
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip

MOST = 4000  # captions that are looked at; more are drawn from
BLOCK = 512
SIDE = 512  # pixels that are kept of a picture


@dataclass(frozen=True)
class Pool:
    """A split's pictures and some of its captions, embedded.

    Attributes:
        images_G, image_GD: readable pictures, as rows of the picture table, and their embeddings.
        rows_Q, text_QD: captions, as rows of the caption table, and their embeddings.
    """

    captions: Captions
    images_G: np.ndarray
    image_GD: np.ndarray
    rows_Q: np.ndarray
    text_QD: np.ndarray


def pool(
    model: MultilingualClip,
    captions: Captions,
    split: str,
    languages: Sequence[str],
    store: FeatureCache | None = None,
    most: int = MOST,
    seed: int = 1,
) -> Pool:
    """Embed a split's pictures and at most `most` of its captions; all captions of a drawn picture or none of them."""
    rows = captions.select(split, languages)
    embed = Embedder(model, store or FeatureCache())
    images_G = np.unique(captions.images[rows])
    image_GD, unreadable_G = embed.images(captions, images_G)
    images_G, image_GD = images_G[~unreadable_G], image_GD[~unreadable_G]
    drawn = images_G
    if len(rows) > most:
        fewer = max(2, len(images_G) * most // len(rows))
        drawn = np.random.default_rng(seed).permutation(images_G)[:fewer]
    rows_Q = rows[np.isin(captions.images[rows], drawn)]
    text_QD = embed.student([str(text) for text in captions.texts[rows_Q]])
    finite_Q, finite_G = np.isfinite(text_QD).all(1), np.isfinite(image_GD).all(1)
    return Pool(captions, images_G[finite_G], image_GD[finite_G], rows_Q[finite_Q], text_QD[finite_Q])


def margins(text_QD: np.ndarray, image_GD: np.ndarray, groups_Q: np.ndarray, groups_G: np.ndarray) -> np.ndarray:
    """By how much the nearest right picture is nearer than the nearest wrong one, in cosine; float32 (Q,).

    Infinite where there is no wrong picture, minus infinity where there is no right one.
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


def extremes(found: Pool, count: int = 4, top: int = 5) -> tuple[list[Row], list[Row]]:
    """The best and the worst queries by margin, each with the first pictures that it finds.

    Languages take turns as far as there are enough, and no picture is looked for twice on one side.
    """
    captions, images_Q = found.captions, found.captions.images[found.rows_Q]
    groups_Q, groups_G = captions.groups[images_Q], captions.groups[found.images_G]
    margins_Q = margins(found.text_QD, found.image_GD, groups_Q, groups_G)
    languages_Q = captions.languages[found.rows_Q]
    known_Q = np.flatnonzero(np.isfinite(margins_Q))
    order = known_Q[np.argsort(-margins_Q[known_Q], kind="stable")]

    def rows(order: np.ndarray) -> list[Row]:
        chosen: list[int] = []
        for once in (True, False):
            for query in order.tolist():
                taken = languages_Q[chosen] if once else ()
                if len(chosen) == count or languages_Q[query] in taken or groups_Q[query] in groups_Q[chosen]:
                    continue
                chosen.append(query)
        return [_row(found, query, top) for query in chosen]

    return rows(order), rows(order[::-1])


def drawn(found: Pool, languages: Sequence[str], top: int = 5, seed: int = 1) -> list[Row]:
    """One query a language, drawn by the seed and not by success, and the first pictures that the model finds."""
    draw, captions = np.random.default_rng(seed), found.captions
    rows = []
    for language in languages:
        own = np.flatnonzero(captions.languages[found.rows_Q] == language)
        if len(own):
            rows.append(_row(found, int(own[draw.integers(len(own))]), top))
    return rows


def _row(found: Pool, query: int, top: int) -> Row:
    best = np.argsort(-(found.image_GD @ found.text_QD[query]), kind="stable")[:top]
    captions, row = found.captions, found.rows_Q[query]
    right = captions.groups[found.images_G[best]] == captions.groups[captions.images[row]]
    pictures = [captions.picture(int(image)) for image in found.images_G[best]]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    return Row(
        str(captions.languages[row]),
        str(captions.texts[row]),
        list(map(np.asarray, pictures)),
        [bool(hit) for hit in right],
    )


def confusion(text_QD: np.ndarray, languages_Q: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Which language a caption's nearest other caption is in; names (L) and shares (L, L), rows sum to 1.

    Where embeddings carry no language, a caption's nearest are its own translations; where they do, the diagonal is
    near 1. Captions that are equally near share the count. A row with nothing beside it is zero.
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
