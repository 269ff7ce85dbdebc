"""Ranks are those of whole-number scores, whatever float32 tells: against int64, where rounding could change a rank."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from mclip_kit.evaluate import device_ranks, rank_blocks
from mclip_kit.evaluate import ranks as module
from mclip_kit.evaluate.rank_blocks import BITS, Part, wrong_scores
from mclip_kit.evaluate.ranks import KS, PROTOCOLS, both_ranks

Draw = np.random.Generator
TOP = 2**26  # about the largest number of the grid


def on_grid(rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers, int64, and which rows are finite."""
    finite_N = np.isfinite(rows_ND).all(1)
    exact_ND = np.where(finite_N[:, None], rows_ND, 0).astype(np.float64)
    longest = np.sqrt((exact_ND**2).sum(1).max(initial=0))
    scale = 2.0 ** np.floor(BITS - np.log2(longest)) if longest else 1.0
    return np.rint(exact_ND * scale).astype(np.int64), finite_N


def slow_ranks(a: np.ndarray, b: np.ndarray, a_groups: np.ndarray, b_groups: np.ndarray, protocol: str) -> list[int]:
    """One direction, row by row, in int64."""
    (a_grid, a_finite), (b_grid, b_finite) = on_grid(a), on_grid(b)
    found = []
    for row, finite, group in zip(a_grid, a_finite, a_groups, strict=True):
        scores_M, right_M = b_grid @ row, b_groups == group
        if not finite or not (right_M & b_finite).any():
            found.append(max(len(b), *KS) + 1)
            continue
        before_M = ((scores_M >= scores_M[right_M & b_finite].max()) | ~b_finite) & ~right_M
        found.append(1 + (len(set(b_groups[before_M])) if protocol == "mclip" else before_M.sum()))
    return found


def check(a: np.ndarray, b: np.ndarray, a_groups: np.ndarray, b_groups: np.ndarray, protocol: str = "any") -> None:
    """Both directions are those of the slow loops, with NumPy and with torch, as a GPU has it."""
    slow = slow_ranks(a, b, a_groups, b_groups, protocol), slow_ranks(b, a, b_groups, a_groups, protocol)
    for device in (None, "cpu"):
        forth, back = both_ranks(a, b, a_groups, b_groups, protocol, device)
        assert (forth.dtype, back.dtype) == (np.int64, np.int64)
        assert (forth.tolist(), back.tolist()) == slow


def unit(draw: Draw, rows: int, width: int) -> np.ndarray:
    rows_ND = draw.standard_normal((rows, width), np.float32)
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def duplicated(draw: Draw, rows: int, width: int) -> np.ndarray:
    return unit(draw, 7, width)[draw.integers(0, 7, rows)]


def near(draw: Draw, rows: int, width: int) -> np.ndarray:
    """Rows that differ by about the resolution of float32."""
    return (unit(draw, 1, width) + draw.integers(-2, 3, (rows, width)) * np.float32(2**-24)).astype(np.float32)


def non_finite(draw: Draw, rows: int, width: int) -> np.ndarray:
    rows_ND = unit(draw, rows, width)
    rows_ND[draw.integers(0, rows, 5), draw.integers(0, width, 5)] = [np.nan, np.inf, -np.inf, np.nan, np.inf]
    return rows_ND


def lengths(draw: Draw, rows: int, width: int) -> np.ndarray:
    """Lengths from 1e-8 to 1."""
    return unit(draw, rows, width) * (10.0 ** draw.uniform(-8, 0, (rows, 1))).astype(np.float32)


KINDS: dict[str, Callable[[Draw, int, int], np.ndarray]] = {
    "random": unit,
    "tied": lambda draw, *shape: draw.integers(-1, 2, shape).astype(np.float32),
    "int64": lambda draw, *shape: draw.integers(-1000, 1001, shape),
    "float16": lambda draw, *shape: unit(draw, *shape).astype(np.float16),
    "float64": lambda draw, *shape: draw.standard_normal(shape),
    "duplicated": duplicated,
    "constant": lambda draw, *shape: np.full(shape, np.float32(0.1)),
    "zero": lambda draw, *shape: np.zeros(shape, np.float32),
    "huge": lambda draw, *shape: unit(draw, *shape) * np.float32(1e38),
    "tiny": lambda draw, *shape: unit(draw, *shape) * np.float32(1e-38),
    "near": near,
    "non-finite": non_finite,
    "lengths": lengths,
    "positive": lambda draw, *shape: np.abs(unit(draw, *shape)),
}


@pytest.mark.parametrize("width", [1, 2, 63, 1024])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_those_of_whole_numbers(kind, width, monkeypatch):
    monkeypatch.setattr(rank_blocks, "ROWS", 16)
    monkeypatch.setattr(rank_blocks, "COLUMNS", 27)
    monkeypatch.setattr(rank_blocks, "NEAR", 9)
    for name, value in {"ROWS": 16, "COLUMNS": 27, "PAIRS": 9}.items():
        monkeypatch.setattr(device_ranks, name, value)
    draw = np.random.default_rng(width)
    a, b = KINDS[kind](draw, 50, width), KINDS[kind](draw, 70, width)
    for groups in (1, 10, 1000):
        a_groups, b_groups = draw.integers(0, groups, 50), draw.integers(0, groups, 70)
        for protocol in PROTOCOLS:
            check(a, b, a_groups, b_groups, protocol)


@pytest.mark.parametrize("dense", [0.0, 1.0])
@pytest.mark.parametrize("width", [2, 512])
def test_scores_that_float32_cannot_tell_apart_are_ranked_exactly(width, dense, monkeypatch):
    """Wrong answers whose scores, about 2^50, differ from the right one's by -2 to 2; by pairs and by blocks."""
    for ways in (module, device_ranks):
        monkeypatch.setattr(ways, "DENSE", dense)
    draw = np.random.default_rng(0)
    b = np.zeros((200, width), np.int64)
    b[:, 0], b[:, 1] = TOP // 2, draw.integers(-2, 3, 200)
    b[0, 1] = 0
    b[100:, 0] -= draw.integers(1, TOP // 2, 100)  # far from the right one
    a = np.zeros((3, width), np.int64)
    a[:, 0], a[:, 1] = TOP // 2, [1, -1, 0]
    exact = a @ b.T
    assert len(np.unique(exact[:, :100])) == 5
    assert len(np.unique(exact[:, :100].astype(np.float32))) == 1
    groups = np.arange(200)
    check(a, b, np.zeros(3, np.int64), groups)
    check(b, a, groups, np.zeros(3, np.int64))
    assert both_ranks(a, b, np.zeros(3, np.int64), groups)[0].tolist() == [
        1 + int((exact[row, 1:] >= exact[row, 0]).sum()) for row in range(3)
    ]


@pytest.mark.parametrize("width", [1, 5, 512, 4096])
def test_float32_scores_are_as_near_to_exact_ones_as_the_limits_say(width):
    """Also where rounding adds up: numbers of one sign, of many magnitudes."""
    draw = np.random.default_rng(width)
    for low in (-1.0, 0.0, 0.999):
        rows = draw.uniform(low, 1.0, (2, 60, width)) * 10.0 ** draw.uniform(-6, 0, (2, 60, 1))
        parts = [
            Part(slice(0, 60), on_grid(rows_ND)[0].astype(np.float64), np.full(60, side), np.ones(60, bool))
            for side, rows_ND in enumerate(rows)
        ]
        exact_RC, found_RC = (wrong_scores(*parts, exact=exact) for exact in (True, False))
        assert found_RC.dtype == np.float32
        assert (exact_RC == parts[0].exact_BD.astype(np.int64) @ parts[1].exact_BD.astype(np.int64).T).all()
        for column in range(60):
            low_R, high_R = module._undecided(exact_RC[:, column], *parts)
            assert ((low_R < found_RC[:, column]) & (found_RC[:, column] <= high_R)).all()
            assert ((low_R < exact_RC[:, column]) & (exact_RC[:, column] < high_R)).all()


@pytest.mark.parametrize("columns", [1, 7, 8, 2048, 2051])
def test_counts_of_a_mask_are_those_of_a_sum(columns):
    """Also of more than 255 words, which is what a byte counts to."""
    scores_RC = np.random.default_rng(columns).integers(0, 4, (600, columns)).astype(np.float32)
    for limits in (np.float32(-1), np.float32(0), np.float32(2), scores_RC[:1], scores_RC[:, :1]):
        above_RW = module._above(scores_RC, limits)
        assert module._per_row(above_RW).tolist() == (scores_RC > limits).sum(1).tolist()
        assert module._per_column(above_RW)[:columns].tolist() == (scores_RC > limits).sum(0).tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_find_the_same_ranks_and_leave_the_libraries_as_they_were(threads, monkeypatch):
    monkeypatch.setattr(rank_blocks, "ROWS", 32)
    monkeypatch.setattr(rank_blocks, "COLUMNS", 64)
    draw = np.random.default_rng(2)
    a, b, groups = unit(draw, 300, 48), unit(draw, 300, 48), draw.integers(0, 90, 300)
    with threadpool_limits(threads, user_api="blas"):
        check(a, b, groups, groups)
        libraries = rank_blocks.ThreadpoolController().select(user_api="blas").info()
        assert {library["num_threads"] for library in libraries} == {threads}


def test_an_error_in_a_thread_reaches_the_caller():
    def work(number: int) -> int:
        return 6 // (3 - number)

    with pytest.raises(ZeroDivisionError):
        list(rank_blocks.in_threads(work, ((number,) for number in range(100))))
    assert list(rank_blocks.in_threads(work, [(0,), (1,), (2,)])) == [2, 3, 6]


def test_long_work_has_a_bar_and_short_work_has_none(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    draw = np.random.default_rng(4)
    a, groups = unit(draw, 100, 8), np.arange(100)
    monkeypatch.setattr(rank_blocks, "ROWS", 10)
    drawn = []
    for soon in (module.SOON, 0):
        monkeypatch.setattr(module, "SOON", soon)
        screen = Terminal()
        monkeypatch.setattr("sys.stderr", screen)
        both_ranks(a, a, groups, groups)
        drawn.append(screen.getvalue())
    assert not drawn[0]
    assert "compare" in drawn[1]
