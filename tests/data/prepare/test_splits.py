"""Splits that are drawn: their shares, and that equal pictures and texts stay together."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.prepare.splits import SplitByHash, draw_exactly, draw_numbers, is_in, union

SHARES = {"valid": 0.05, "test": 0.1}


@pytest.mark.parametrize(("rows", "valid", "test"), [(19, 0, 1), (20, 1, 2), (600, 30, 60), (7, 0, 0)])
def test_few_rows_get_their_exact_shares(rows, valid, test):
    counts = Counter(draw_exactly([(None, [f"text {n}"]) for n in range(rows)], SHARES))
    assert (counts["valid"], counts["test"], counts["train"]) == (valid, test, rows - valid - test)


def test_shares_of_none_and_of_all():
    items = [(None, [f"text {n}"]) for n in range(30)]
    assert set(draw_exactly(items, {})) == {"train"}
    assert set(draw_exactly(items, {"test": 1.0})) == {"test"}
    assert set(SplitByHash({}).draw(draw_numbers(items))) == {"train"}
    assert set(SplitByHash({"test": 1.0}).draw(draw_numbers(items))) == {"test"}
    assert draw_exactly([], SHARES) == SplitByHash(SHARES).draw(draw_numbers([])) == []


def spelled(text: str, draw: random.Random) -> str:
    """The same text in other spaces, case, width and marks."""
    ways = [str.upper, str.title, lambda t: t.replace(" ", "  "), lambda t: f" {t}.", lambda t: t.replace("a", "ａ")]
    return draw.choice(ways)(text)


@pytest.mark.parametrize("drawer", [draw_exactly, lambda items, shares: SplitByHash(shares).draw(draw_numbers(items))])
def test_texts_that_differ_in_spaces_case_or_width_are_in_one_split(drawer):
    draw = random.Random(0)
    texts = [spelled(f"a sentence about {n % 150}", draw) for n in range(600)]
    splits = drawer([(None, [text]) for text in texts], {"valid": 0.2, "test": 0.2})
    of = defaultdict(set)
    for number, split in zip(hash_texts(texts).tolist(), splits, strict=True):
        of[number].add(split)
    assert {len(found) for found in of.values()} == {1}
    assert set(splits) == {"train", "valid", "test"}


def test_groups_reach_over_pictures_and_over_all_languages():
    items = [
        ("1.jpg", ["a dog", "ein Hund"]),
        ("1.jpg", ["one more"]),
        ("2.jpg", ["Ein  Hund."]),
        ("2.jpg", []),
        *[(f"{n}.jpg", [f"text {n}", f"Text-{n}", f"Satz {n}"]) for n in range(10, 40)],
    ]
    for seed in range(5):
        random.Random(seed).shuffle(items)
        splits = draw_exactly(items, {"test": 0.5})
        assert len({s for (image, _), s in zip(items, splits, strict=True) if image in ("1.jpg", "2.jpg")}) == 1
        assert splits.count("test") == 17


def test_the_draw_depends_on_texts_and_not_on_their_order():
    items = [(None, [f"text {n}"]) for n in range(100)]
    before = dict(zip((own[0] for _, own in items), draw_exactly(items, SHARES), strict=True))
    random.Random(1).shuffle(items)
    assert dict(zip((own[0] for _, own in items), draw_exactly(items, SHARES), strict=True)) == before


def test_ten_captions_of_many_pictures_still_give_a_test_split():
    items = [(f"{n}.jpg", [f"a picture of class {n % 10}"]) for n in range(600)]
    splits = draw_exactly(items, {"valid": 0.05, "test": 0.05})
    assert Counter(splits) == {"train": 480, "valid": 60, "test": 60}
    one = [(f"{n}.jpg", ["a picture"]) for n in range(600)]
    assert set(draw_exactly(one, SHARES)) == {"train"}


def test_texts_without_letters_are_told_apart():
    items = [(None, ["!" * n]) for n in range(1, 31)]
    assert draw_exactly(items, {"test": 0.5}).count("test") == 15


def test_many_rows_get_about_their_shares_in_blocks_or_at_once():
    items = [(f"{n}.jpg", []) if n % 2 else (None, [f"text {n}"]) for n in range(8000)]
    with_text = [item if item[1] else (item[0], ["a"]) for item in items]
    at_once = SplitByHash(SHARES).draw(draw_numbers(with_text))
    counts = Counter(at_once)
    assert abs(counts["valid"] - 400) < 80
    assert abs(counts["test"] - 800) < 110
    drawer = SplitByHash(SHARES)
    assert [
        split for start in range(0, 8000, 500) for split in drawer.draw(draw_numbers(with_text[start : start + 500]))
    ] == at_once


def test_shares_of_long_corpora_fall_and_equal_texts_stay_together():
    drawer, splits = SplitByHash({"valid": 0.05, "test": 0.05}, held_out=50), []
    texts = [f"text {n if n % 10 else n % 1000}" for n in range(40_000)]
    for start in range(0, len(texts), 1000):
        splits += drawer.draw(draw_numbers([(None, [text]) for text in texts[start : start + 1000]]))
    of = defaultdict(set)
    for text, split in zip(texts, splits, strict=True):
        of[text].add(split)
    assert {len(found) for found in of.values()} == {1}
    distinct = Counter(found.pop() for found in of.values())
    assert 20 < distinct["test"] < 150
    assert 20 < distinct["valid"] < 150
    late = Counter(splits[-20_000:])
    assert late["test"] > 0
    assert late["valid"] > 0


def test_hashes_are_looked_up_in_a_sorted_array_without_zero():
    held = union([np.array([5, 0, 3], "<u8"), np.array([5, 2**64 - 1], "<u8")])
    assert held.tolist() == [3, 5, 2**64 - 1]
    assert is_in(np.array([0, 5, 4, 2**64 - 1, 2**63], "<u8"), held).tolist() == [False, True, False, True, False]
    assert is_in(np.array([1, 0], "<u8"), union([])).tolist() == [False, False]
