"""What valid or test has too is dropped from train, and counted; without the rule it stays."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Cleaning, Content, Corpus, Row, Vocabulary
from mclip_kit.data.leakage import leaks_of
from mclip_kit.data.prepare import splits, summary, writer
from mclip_kit.data.prepare.prepare import write_prepared
from mclip_kit.errors import DataError
from tests import tiny

Counts = dict[str, dict[str, dict[str, int]]]


def declared(leaks: str = "drop", **changes: object) -> Corpus:
    return tiny.declaration().model_copy(update={"cleaning": Cleaning(leaks=leaks), **changes})


def written(folder: Path, rows: list[Row], corpus: Corpus, pixels: np.ndarray | None = None) -> Counts:
    manifest = write_prepared(lambda: Content(rows, pixels), corpus, folder / "data")
    assert json.loads((folder / "data/manifest.json").read_text())["counts"] == manifest["counts"]
    return manifest["counts"]


def captions(folder: Path) -> list[tuple[str, str]]:
    found = read_captions(folder / "data")
    return list(zip(found.splits.tolist(), found.texts.tolist(), strict=True))


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"data/bitext/{name}.txt").read_text("utf-8").split("\n")[:-1]


def caption(split: str, text: str, image: str) -> Row:
    return Row(split, [("en", text)], image=image)


def pair(split: str, english: str, german: str) -> Row:
    return Row(split, [("en", english), ("de", german)], parallel=True)


GIVEN = [
    caption("train", "A  dog.", "1"),
    caption("train", "a cat", "2"),
    caption("train", "a bird", "2"),
    caption("valid", "a cat", "3"),
    caption("valid", "a horse", "4"),
    caption("test", "a dog", "5"),
    caption("test", "a horse", "6"),
]


def test_train_loses_captions_of_valid_and_test(tmp_path):
    counts = written(tmp_path, GIVEN, declared())
    assert captions(tmp_path) == [
        ("train", "a bird"), ("valid", "a cat"), ("valid", "a horse"), ("test", "a dog"), ("test", "a horse"),
    ]  # fmt: skip
    assert counts["captions"] == {"train": {"en": 1}, "valid": {"en": 2}, "test": {"en": 2}}
    assert counts["splits"] == {"train": 1, "valid": 2, "test": 2}
    assert counts["left_out"] == {
        "texts with other white space, now single spaces": 1,
        "captions of train, because valid or test has the same": 2,
        "pictures of train, because valid or test has the same": 1,
    }
    assert leaks_of(tmp_path / "data") == []


@pytest.mark.parametrize(("rule", "lines_of_leaks"), [("report", 1), ("keep", 0)])
def test_without_the_rule_all_stays_and_is_reported_or_not(tmp_path, rule, lines_of_leaks):
    counts = written(tmp_path, GIVEN, declared(rule))
    assert len(captions(tmp_path)) == len(GIVEN)
    assert "because" not in str(counts["left_out"])
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert summary.describe(tmp_path / "data", manifest).count("leak: ") == lines_of_leaks


def test_train_loses_pairs_of_which_any_side_is_held_out(tmp_path):
    rows = [
        pair("train", "a dog", "ein Tier"),
        pair("train", "one", "Ein Hund!"),
        pair("train", "two", "zwei"),
        pair("train", "EIN PFERD", "drei"),
        pair("test", "A dog", "ein Hund"),
        pair("valid", "a horse", "ein Pferd"),
    ]
    spelled = Vocabulary(pieces=120, coverage=1.0, max_unknown=1)  # of one line of training text
    counts = written(tmp_path, rows, declared(vocabulary=spelled))
    assert (lines(tmp_path, "train.en-de.en"), lines(tmp_path, "train.en-de.de")) == (["two"], ["zwei"])
    assert lines(tmp_path, "test.en-de.de") == ["ein Hund"]
    assert counts["sentence_pairs"] == {"train": {"en-de": 1}, "test": {"en-de": 1}, "valid": {"en-de": 1}}
    assert counts["left_out"] == {"sentence pairs of train, because valid or test has the same": 3}
    assert leaks_of(tmp_path / "data") == []


def test_train_loses_pictures_of_test_by_name_and_by_content(tmp_path):
    pixels = np.stack([np.full((4, 4, 3), shade, np.uint8) for shade in (1, 2, 1, 3)])
    rows = [caption(split, f"text {n}", f"{n}") for n, split in enumerate(["train", "train", "test", "train"])]
    counts = written(tmp_path, [*rows, caption("test", "one more", "3")], declared(), pixels)
    assert captions(tmp_path) == [("train", "text 1"), ("test", "text 2"), ("test", "one more")]
    assert counts["splits"] == {"train": 1, "test": 2}
    assert counts["left_out"]["pictures of train, because valid or test has the same"] == 2
    assert counts["images"] == 4
    assert leaks_of(tmp_path / "data") == []


def test_where_nothing_would_be_left_the_way_out_is_named_and_works(tmp_path):
    rows = [caption("train", "a dog", "1"), caption("test", "a dog", "2")]
    with pytest.raises(DataError, match=r"all 1 captions of train, because .*--set cleaning\.leaks=report"):
        written(tmp_path, rows, declared())
    assert list(tmp_path.iterdir()) == []
    written(tmp_path, rows, declared("report"))
    assert len(captions(tmp_path)) == 2


@pytest.mark.parametrize("exact", [10**6, 100], ids=["few rows", "many rows"])
def test_drawn_splits_share_nothing(tmp_path, monkeypatch, exact):
    """Pairs, pictures and captions in other spaces and case: no text and no picture is in two splits."""
    monkeypatch.setattr(writer, "EXACT", exact)
    monkeypatch.setattr(writer, "BLOCK", 50)
    draw = random.Random(3)
    rows = []
    for n in range(600):
        about = f"text  {n % 113}" if n % 2 else f"Text {n % 113} ."
        rows.append(Row("", [("en", about), ("de", f"Satz {draw.randrange(300)}")], image=f"{n % 251}", parallel=True))
    counts = written(tmp_path, rows, declared(splits={"valid": 0.1, "test": 0.1}))
    assert set(counts["drawn"]) >= {"train"}
    found = read_captions(tmp_path / "data")
    held = splits.hash_texts(found.texts.tolist())
    for column in (held, found.images):
        of = {split: set(column[found.splits == split].tolist()) for split in set(found.splits)}
        assert not any(of[a] & of[b] for a in of for b in of if a < b)
    assert leaks_of(tmp_path / "data") == []
