"""Exact ranks of right answers, and metrics of ranks. Arrays in, numbers out.

Shapes: Q captions, G pictures, D embedding; where both directions are meant, N and M rows of two sides. R, C: rows and
columns of a block of scores; W: its columns, eight to a word; P: pairs of rows.

Scores are exact: products of whole numbers (`rank_blocks`). Most of them need not be known exactly. A block of scores
is computed in float32, and only pairs whose score is so near to a right answer's that its rounding could matter are
computed again in float64.

The bound of the rounding. Each number of the grid is rounded to float32 once, each product of two numbers at most once,
and each product takes part in at most D - 1 rounded sums, in whatever order a BLAS adds them. With u = 2^-24, the unit
roundoff of float32, each term of a score is therefore multiplied by at most D + 2 factors between 1 - u and 1 + u, so
|float32 score - exact score| <= gamma(D + 2) sum |a_d| |b_d| <= gamma(D + 2) |a| |b|, where gamma(n) = n u / (1 - n u)
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, lemma 3.1 and section 3.1; the last step is
Cauchy's inequality). Nothing underflows or overflows: numbers of the grid are zero or at least 1, and |a| |b| < 2^53.
"""

from typing import Literal, get_args

import numpy as np

from mclip_kit.errors import DataError
from mclip_kit.evaluate import device_ranks
from mclip_kit.evaluate.rank_blocks import DENSE, Part, Side, best_scores, in_threads, places, side, wrong_scores
from mclip_kit.models.device import auto_device
from mclip_kit.progress import SOON, tqdm

KS = (1, 5, 10)
Protocol = Literal["any", "xtd", "mclip", "language"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
UNIT = 2.0**-24  # unit roundoff of float32
WIDE = 4  # blocks of a row of blocks that a thread does in one go: their rows are put on the grid once
PAIRS = 1024  # undecided pairs that are computed at once


def both_ranks(
    a_ND: np.ndarray,
    b_MD: np.ndarray,
    a_groups_N: np.ndarray,
    b_groups_M: np.ndarray,
    protocol: str = "any",
    device: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row's best right answer among the rows of the other side, 1 is first; int64 (N,) and (M,).

    Every row of the same group is a right answer. A wrong row with an equal score comes before it, so constant
    embeddings score at most chance. A row with NaN or inf counts as a miss, and as a wrong answer it comes before all
    others. The rank of a row without a right answer is larger than the number of rows and than the largest k. Scores
    are computed in blocks: memory does not grow with N times M.

    Args:
        a_ND, b_MD: embeddings, all of about the same length, such as L2-normalised ones; whole numbers stay exact.
        a_groups_N, b_groups_M: rows with the same number are right answers of each other.
        protocol: `mclip` counts every wrong group once, the others every wrong row before the right one: the official
            mCLIP script removes duplicates of an image from the ranking before it counts to k. Five captions of one
            wrong image then cost one place, so its image-to-text recalls are higher than those of other protocols on
            the same embeddings (and that script calls text-to-image "i2t").
        device: of torch, for the products; None: `auto_device` if it is a GPU, else NumPy on all cores. Ranks are the
            same. `mclip` always uses NumPy.
    Raises:
        DataError: a side is empty, the widths differ, or the protocol is unknown.

    >>> pictures = np.eye(3, dtype=np.float32)
    >>> captions = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1]], np.float32)  # of pictures 0 and 1
    >>> both_ranks(captions, pictures, np.array([0, 1]), np.arange(3))
    (array([1, 2]), array([ 1,  1, 11]))
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if not len(a_ND) or not len(b_MD):
        raise DataError(f"there is nothing to rank: {len(a_ND)} rows against {len(b_MD)}")
    if a_ND.shape[1] != b_MD.shape[1]:
        raise DataError(f"embeddings of width {a_ND.shape[1]} cannot be compared with those of width {b_MD.shape[1]}")
    a, b = side(a_ND, a_groups_N), side(b_MD, b_groups_M)
    best_N, best_M = best_scores(a, b)
    gpu = auto_device().type == "cuda"
    if (device or gpu) and protocol != "mclip":
        before_N, before_M = device_ranks.rows_before(a, b, best_N, best_M, _undecided, device or str(auto_device()))
    else:
        before_N, before_M = _wrong_before(a, b, best_N, best_M, whole_groups=protocol == "mclip")
    return _ranks(a, before_N, best_N, len(b_MD)), _ranks(b, before_M, best_M, len(a_ND))


def ranks(
    queries_QD: np.ndarray,
    gallery_GD: np.ndarray,
    query_groups_Q: np.ndarray,
    gallery_groups_G: np.ndarray,
    protocol: str = "any",
) -> np.ndarray:
    """Rank of each query's best right answer, int64 (Q,): one direction of `both_ranks`."""
    return both_ranks(queries_QD, gallery_GD, query_groups_Q, gallery_groups_G, protocol)[0]


def recall(ranks_Q: np.ndarray) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent; NaN if there are no queries."""
    return {f"r{k}": float((ranks_Q <= k).mean() * 100) if len(ranks_Q) else float("nan") for k in KS}


def median_rank(ranks_Q: np.ndarray) -> float:
    """The median rank; NaN if there are no queries."""
    return float(np.median(ranks_Q)) if len(ranks_Q) else float("nan")


def _ranks(ranked: Side, before_N: np.ndarray, best_N: np.ndarray, others: int) -> np.ndarray:
    """Ranks in the first order of the rows."""
    return ranked.in_first_order(np.where(np.isneginf(best_N), max(others, *KS) + 1, before_N + 1))


def _wrong_before(
    a: Side, b: Side, best_N: np.ndarray, best_M: np.ndarray, whole_groups: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The number of wrong rows, or wrong groups, that are at least as near as each row's nearest right answer.

    Each thread takes a block, multiplies and counts; products have one thread, so that cores wait for no other.
    """
    before_N, before_M = np.zeros(len(best_N), np.int64), np.zeros(len(best_M), np.int64)
    count = _groups_before if whole_groups else _rows_before

    def work(rows: slice, others: list[Part]) -> list[tuple[slice, slice, np.ndarray, np.ndarray]]:
        part = a.part(rows)
        return [(rows, other.place, *count(part, other, best_N[rows], best_M[other.place])) for other in others]

    row_places, column_places = places(a, b, whole_groups)
    starts = range(0, len(column_places), WIDE)
    strips = (list(map(b.part, column_places[start : start + WIDE])) for start in starts)
    blocks = ((rows, others) for others in strips for rows in row_places)
    with tqdm(total=len(row_places) * len(starts), desc="compare", unit="block", leave=False, delay=SOON) as bar:
        for counted in in_threads(work, blocks):
            for rows, columns, per_row, per_column in counted:
                before_N[rows] += per_row
                before_M[columns] += per_column
            bar.update()
    return before_N, before_M


def _groups_before(a: Part, b: Part, best_R: np.ndarray, best_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The wrong groups of a block before each of its rows and columns; the maximum of a group is found in float64."""
    scores_RC = wrong_scores(a, b, exact=True)
    per_row = np.maximum.reduceat(scores_RC, _starts(b.groups_B), axis=1)
    per_column = np.maximum.reduceat(scores_RC, _starts(a.groups_B), axis=0)
    return np.count_nonzero(per_row >= best_R[:, None], axis=1), np.count_nonzero(per_column >= best_C, axis=0)


def _rows_before(a: Part, b: Part, best_R: np.ndarray, best_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The wrong rows of a block before each of its rows and columns, most of them found in float32."""
    scores_RC = wrong_scores(a, b, exact=False)
    low_R, high_R = _undecided(best_R, a, b)
    low_C, high_C = _undecided(best_C, b, a)
    row_RW, column_RW = _above(scores_RC, high_R[:, None]), _above(scores_RC, high_C)
    open_RW = (_above(scores_RC, low_R[:, None]) ^ row_RW) | (_above(scores_RC, low_C) ^ column_RW)
    if np.count_nonzero(open_RW.view(bool)) > DENSE * scores_RC.size:
        scores_RC = wrong_scores(a, b, exact=True)
        row_RW = _above(scores_RC, best_R[:, None] - 1)
        column_RW = _above(scores_RC, best_C - 1)
    else:
        rows_P, columns_P = np.divmod(np.flatnonzero(open_RW.view(bool)), 8 * open_RW.shape[1])
        scores_P = _exact_scores(a, b, rows_P, columns_P)
        row_RW.view(bool)[rows_P, columns_P] = scores_P >= best_R[rows_P]
        column_RW.view(bool)[rows_P, columns_P] = scores_P >= best_C[columns_P]
    return _per_row(row_RW), _per_column(column_RW)[: len(best_C)]


def _undecided(best_B: np.ndarray, part: Part, other: Part) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scores between which the float32 score of a pair does not tell whether it is at least the best right one.

    Above the second it is, at or below the first it is not. Scores are whole numbers: one more on each side covers the
    rounding of the limits in float64, and they are rounded outwards to float32.
    """
    terms = part.exact_BD.shape[1] + 2
    gamma = terms * UNIT / (1 - terms * UNIT)
    bound_B = gamma * part.lengths_B * other.lengths_B.max() * (1 + UNIT) + 1
    low_B, high_B = (best_B - bound_B).astype(np.float32), (best_B + bound_B).astype(np.float32)
    return np.nextafter(low_B, np.float32(-np.inf)), np.nextafter(high_B, np.float32(np.inf))


def _exact_scores(a: Part, b: Part, rows_P: np.ndarray, columns_P: np.ndarray) -> np.ndarray:
    """Exact scores of some pairs of a block, float64 (P,)."""
    scores_P = np.empty(len(rows_P))
    for start in range(0, len(rows_P), PAIRS):
        some = slice(start, start + PAIRS)
        scores_P[some] = np.einsum("pd,pd->p", a.exact_BD[rows_P[some]], b.exact_BD[columns_P[some]])
    return scores_P


def _above(scores_RC: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether each score is above its limit: one byte a score, eight to a word, uint64 (R, W). Bytes after C are 0."""
    rows, columns = scores_RC.shape
    above_RW = np.empty((rows, -(-columns // 8)), np.uint64)
    above_RW[:, -1] = 0
    np.greater(scores_RC, limits, out=above_RW.view(bool)[:, :columns])
    return above_RW


def _per_row(above_RW: np.ndarray) -> np.ndarray:
    """The number of scores above their limits in each row, (R,). A word adds eight bytes at once: they count to 255."""
    slabs = [above_RW[:, start : start + 255].sum(1).view(np.uint8) for start in range(0, above_RW.shape[1], 255)]
    return np.add.reduce(slabs, dtype=np.int64).reshape(-1, 8).sum(1)


def _per_column(above_RW: np.ndarray) -> np.ndarray:
    """The number of scores above their limits in each column, and in those that fill the last word, (8 W,)."""
    slabs = [above_RW[start : start + 255].sum(0).view(np.uint8) for start in range(0, len(above_RW), 255)]
    return np.add.reduce(slabs, dtype=np.int64)


def _starts(groups_N: np.ndarray) -> np.ndarray:
    """The first position of each group; the groups are in order."""
    return np.flatnonzero(np.r_[True, groups_N[1:] != groups_N[:-1]])
