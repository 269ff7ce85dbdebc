"""Ranks of both directions: protocols against slow loops, blocks, exact ties, non-finite numbers."""

from fractions import Fraction

import numpy as np
import pytest

from mclip_kit.errors import DataError
from mclip_kit.evaluate import rank_blocks
from mclip_kit.evaluate.ranks import PROTOCOLS, both_ranks, median_rank, ranks, recall
from mclip_kit.evaluate.retrieval import score


def exact_rank(query: np.ndarray, gallery: np.ndarray, group: int, groups: np.ndarray, protocol: str) -> int:
    """In fractions: one more than the number of wrong items (mclip: groups) at least as near as a right one."""
    near = [sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(query, item, strict=True)) for item in gallery]
    best = max((s for s, other in zip(near, groups, strict=True) if other == group), default=None)
    if best is None:
        return max(len(gallery), 10) + 1
    before = [other for s, other in zip(near, groups, strict=True) if s >= best and other != group]
    return 1 + len(set(before) if protocol == "mclip" else before)


def exact_ranks(a: np.ndarray, b: np.ndarray, a_groups: np.ndarray, b_groups: np.ndarray, protocol: str) -> list[int]:
    return [exact_rank(query, b, group, b_groups, protocol) for query, group in zip(a, a_groups, strict=True)]


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    """Random directions of length 1, float32."""
    rows_ND = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def some(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Captions and pictures with their groups: some pictures look the same, have no caption, or many."""
    draw = np.random.default_rng(3)
    image_groups, text_groups = draw.integers(0, 12, 20), draw.integers(0, 14, 45)
    if kind == "directions":
        return unit(45, 5, 0), unit(20, 5, 1), text_groups, image_groups
    largest = {"ties": 1, "whole numbers": 1000}[kind]
    texts, images = (draw.integers(-largest, largest + 1, (n, 4)).astype(np.float32) for n in (45, 20))
    return texts, images, text_groups, image_groups


@pytest.mark.parametrize("block", [1, 3, 1000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["directions", "ties", "whole numbers"])
def test_both_directions_are_those_of_exact_loops_whatever_the_blocks(kind, protocol, block, monkeypatch):
    monkeypatch.setattr(rank_blocks, "ROWS", block)
    monkeypatch.setattr(rank_blocks, "COLUMNS", 2 * block)
    texts, images, text_groups, image_groups = some(kind)
    t2i, i2t = both_ranks(texts, images, text_groups, image_groups, protocol)
    assert t2i.tolist() == exact_ranks(texts, images, text_groups, image_groups, protocol)
    assert i2t.tolist() == exact_ranks(images, texts, image_groups, text_groups, protocol)


def test_equal_embeddings_tie_in_any_position():
    twin_of = np.random.default_rng(1).integers(0, 1500, 5000)
    rows, order = unit(1500, 192, 0)[twin_of], np.arange(5000)
    found = ranks(rows, rows, order, order)  # each row finds itself, after all equal rows
    assert found.tolist() == np.bincount(twin_of)[twin_of].tolist()


def test_mclip_counts_wrong_pictures_where_others_count_wrong_captions():
    """Five captions of one wrong picture come before the right one: they cost five places, or one."""
    images, texts = np.eye(2, dtype=np.float32), np.array([[0.5, 0.0]] + [[0.9, 0.1]] * 5, np.float32)
    text_images, strata = np.array([0, 1, 1, 1, 1, 1]), np.array(["a", "a"])
    places = {p: score(images, texts, np.arange(2), text_images, strata, p).i2t_G[0] for p in ("any", "mclip")}
    assert places == {"any": 6, "mclip": 2}


def test_xtd_takes_one_caption_a_picture():
    images, strata = np.eye(3, dtype=np.float32), np.array(["a"] * 3)
    one = score(images, images[[2, 0]], np.arange(3), np.array([2, 0]), strata, "xtd")
    assert (one.t2i_Q.tolist(), one.i2t_G.tolist(), one.gallery, one.captions) == ([1, 1], [1, 1], 3, 2)
    assert one.protocol == "xtd"
    with pytest.raises(DataError, match="one caption a picture and picture 2 has 2"):
        score(images, images[[2, 0, 2]], np.arange(3), np.array([2, 0, 2]), strata, "xtd")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("constant", [0.0, 0.1, np.nan, np.inf, -np.inf])
def test_towers_that_collapsed_score_chance_or_below(constant, protocol):
    rows, same, order = unit(300, 37, 0), np.full((300, 37), constant, np.float32), np.arange(300)
    for a, b in ((rows, same), (same, rows), (same, same)):
        for found in both_ranks(a, b, order, order, protocol):
            assert all(recall(found)[f"r{k}"] <= 100 * k / 300 + 1e-9 for k in (1, 5, 10))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [4, 40])
def test_a_row_with_one_non_finite_number_is_a_miss_and_comes_before_everything(rows, value):
    a, b, order = unit(rows, 8, 0), unit(rows, 8, 0), np.arange(rows)
    b[2, 5] = value
    forth, back = both_ranks(a, b, order, order)
    lost = max(rows, 10) + 1
    assert forth.tolist() == [lost if i == 2 else 2 for i in range(rows)]
    assert back.tolist() == [lost if i == 2 else 1 for i in range(rows)]


def test_no_right_answer_is_a_miss_in_the_smallest_gallery():
    assert ranks(unit(2, 3, 0), unit(1, 3, 1), np.array([5, 6]), np.array([6])).tolist() == [11, 1]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12])
def test_the_length_of_embeddings_does_not_matter(scale):
    texts, images, text_groups, image_groups = some("directions")
    expected = both_ranks(texts, images, text_groups, image_groups)
    for found, wanted in zip(
        both_ranks(texts * np.float32(scale), images, text_groups, image_groups), expected, strict=True
    ):
        assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("a", "b", "protocol", "message"),
    [
        (unit(0, 3, 0), unit(2, 3, 0), "any", "nothing to rank: 0 rows against 2"),
        (unit(2, 3, 0), unit(0, 3, 0), "any", "nothing to rank: 2 rows against 0"),
        (unit(2, 3, 0), unit(2, 4, 0), "any", "width 3 cannot be compared with those of width 4"),
        (unit(2, 3, 0), unit(2, 3, 0), "best", "no protocol 'best'; there are any, xtd, mclip"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(a, b, protocol, message):
    with pytest.raises(DataError, match=message):
        both_ranks(a, b, np.arange(len(a)), np.arange(len(b)), protocol)


def test_the_median_rank_is_the_middle_one():
    assert median_rank(np.array([9, 1, 4])) == 4.0
    assert median_rank(np.array([1, 4])) == 2.5
    assert np.isnan(median_rank(np.array([])))
