"""Exact ranks: products in float32 whose near ties are computed again, against every product in float64.

    python benchmarks/ranks.py [--threads N] [--smoke]
    python benchmarks/ranks.py --rows 100000 [--threads N] [--device cuda]

20,000 captions and pictures of width 512, unit vectors; half of the captions are near their picture, the others are
noise, so that ranks of all sizes are counted. The float64 way is what this package did before: blocks of 1,024 x 4,096
scores, masks, comparisons. The two take turns with the same number of threads, and must find the same ranks, which is
checked. The last line has the ratio of seconds. `--smoke` uses 1,500 rows.

`--rows N` measures the float32 way alone, once: nanoseconds a pair, and the peak memory. `--device` is where: a device
of torch; without it a GPU if there is one, else NumPy.
"""

import argparse
import resource
from statistics import median

import numpy as np
from side_by_side import alternate, last_line, ratio, seconds, spread
from threadpoolctl import threadpool_limits

from mclip_kit.evaluate.rank_blocks import Side, best_scores, side
from mclip_kit.evaluate.ranks import both_ranks, median_rank

GOAL = 2
WIDTH, NOISE = 512, 6.0
ROWS, COLUMNS = 1024, 4096  # of the float64 way
AT_ONCE = 1000  # rows that are drawn at once, so that drawing is not the peak of the memory
SIZES = {False: (20_000, 5), True: (1_500, 1)}  # rows, rounds
Ranks = tuple[np.ndarray, np.ndarray]


def unit_vectors(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and captions, float32; every second caption is near its picture."""
    draw = np.random.default_rng(0)
    image_ND, text_ND = np.empty((rows, WIDTH), np.float32), np.empty((rows, WIDTH), np.float32)
    for start in range(0, rows, AT_ONCE):
        images, texts = image_ND[start : start + AT_ONCE], text_ND[start : start + AT_ONCE]
        images[:] = draw.standard_normal(images.shape, np.float32)
        texts[:] = NOISE * draw.standard_normal(texts.shape, np.float32)
        texts[::2] += images[::2]
        for drawn in (images, texts):
            drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return text_ND, image_ND


def in_float64(a_ND: np.ndarray, b_MD: np.ndarray) -> Ranks:
    """Ranks of row i among all rows, its right answer being row i; every score exact."""
    a, b = side(a_ND, np.arange(len(a_ND))), side(b_MD, np.arange(len(b_MD)))
    best_N, best_M = best_scores(a, b)
    before_N, before_M = np.zeros(len(best_N), np.int64), np.zeros(len(best_M), np.int64)
    for columns in b.blocks(COLUMNS):
        columns_DC = b.part(columns).exact_BD.T
        for rows in a.blocks(ROWS):
            scores_RC = wrong_scores(a, b, rows, columns, columns_DC)
            before_N[rows] += np.count_nonzero(scores_RC >= best_N[rows, None], axis=1)
            before_M[columns] += np.count_nonzero(scores_RC >= best_M[columns], axis=0)
    return before_N + 1, before_M + 1


def wrong_scores(a: Side, b: Side, rows: slice, columns: slice, columns_DC: np.ndarray) -> np.ndarray:
    """A block of scores; those of right pairs are -inf, those of non-finite rows inf."""
    scores_RC = a.part(rows).exact_BD @ columns_DC
    scores_RC[~a.finite_N[rows]] = np.inf
    scores_RC[:, ~b.finite_N[columns]] = np.inf
    first, last = (min(max(end, columns.start), columns.stop) for end in (rows.start, rows.stop))
    right_RC = a.groups_N[rows, None] == b.groups_N[first:last]
    scores_RC[:, first - columns.start : last - columns.start][right_RC] = -np.inf
    return scores_RC


def compare(rows: int, rounds: int) -> None:
    """Print seconds and nanoseconds a pair of both ways, and their ratio."""
    text_ND, image_ND = unit_vectors(rows)
    groups = np.arange(rows)
    found: dict[str, Ranks] = {}
    ways = {"float64": lambda: in_float64(text_ND, image_ND)}
    ways["float32 and near ties"] = lambda: both_ranks(text_ND, image_ND, groups, groups)
    work = {name: lambda name=name: seconds(lambda: found.update({name: ways[name]()})) for name in ways}
    figures = alternate(work, rounds)  # type: ignore[arg-type]
    for name, values in figures.items():
        print(f"{name}: {spread(values)} s, {median(values) / rows**2 * 1e9:.1f} ns a pair")
    first, second = found.values()
    if not all(np.array_equal(*ranks) for ranks in zip(first, second, strict=True)):
        raise SystemExit("the two ways find different ranks")
    print(f"the same {2 * rows:,} ranks, median {median_rank(first[0]):.1f}")
    ratios = ratio(figures, *ways)
    print(f"ratio {spread(ratios)}")
    last_line("ranks", ratios, GOAL)


def measure(rows: int, device: str | None) -> None:
    """Print nanoseconds a pair and peak memory of one pass over rows x rows."""
    text_ND, image_ND = unit_vectors(rows)
    before, groups = peak(), np.arange(rows)
    taken = seconds(lambda: both_ranks(text_ND, image_ND, groups, groups, device=device))
    print(f"{rows:,} x {rows:,} of width {WIDTH}: {taken:.1f} s, {taken / rows**2 * 1e9:.2f} ns a pair")
    stored = (text_ND.nbytes + image_ND.nbytes) / 1e6
    print(f"peak memory {peak():,.0f} MB; {before:,.0f} MB before ranking, of which embeddings {stored:,.0f} MB")
    print(f"a million rows on each side at this speed: {taken / rows**2 * 1e12 / 3600:.1f} hours")


def peak() -> float:
    """The peak resident memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Compare, or measure one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of both ways; as many as NumPy has if left out")
    parser.add_argument("--rows", type=int, help="measure the float32 way alone, with so many rows on each side")
    parser.add_argument("--device", help="with --rows: a device of torch")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with threadpool_limits(asked.threads, user_api="blas"):
        if asked.rows:
            measure(asked.rows, asked.device)
        else:
            compare(*SIZES[asked.smoke])


if __name__ == "__main__":
    main()
