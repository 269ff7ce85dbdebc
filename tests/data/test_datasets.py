"""Training rows of a triangle: of captions and of sentence pairs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data import datasets
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.datasets import rows_from_bitexts, rows_from_captions
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.data.triangle_rows import MISSING, TriangleRows
from mclip_kit.errors import DataError
from tests import tiny
from tests.data.small_bitext import ENGLISH, GERMAN, binarize, write_bitext


@pytest.fixture(scope="module")
def tokenizer(squares: Path) -> XlmrTokenizer:
    return XlmrTokenizer(squares / "bitext")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: XlmrTokenizer) -> Path:
    return write_bitext(tmp_path, tokenizer)


def examples(
    folder: Path,
    tokenizer: XlmrTokenizer,
    languages: Sequence[str] | str = "all",
    include: bool = True,
    max_tokens: int = 50,
) -> TriangleRows:
    stream = rows_from_bitexts(
        [open_bitext(folder)], "train", languages, "en", include, max_tokens,
        lambda texts: tokenizer.encode(texts, max_tokens), tokenizer.pieces(),
    )  # fmt: skip
    return tiny.rows_of(stream)


def rows(found: TriangleRows, tokenizer: XlmrTokenizer) -> list[tuple[str, str, str]]:
    """Language, student's text, teacher's text of every row."""
    return [
        (found.languages[language], tokenizer.decode(ids), teacher)
        for language, ids, teacher in zip(found.languages_N, found.tokens, found.teacher_texts, strict=True)
    ]


def test_the_other_side_is_the_students_in_either_order_of_a_pair(folder, tokenizer):
    assert rows(examples(folder, tokenizer, include=False), tokenizer) == [
        *(("de", german, english) for german, english in zip(GERMAN, ENGLISH, strict=True)),
        ("fr", "carré rouge gauche", "red square left"),
        ("fr", "carré noir haut", "black square above"),
    ]


def test_sentences_of_the_teachers_language_come_once(folder, tokenizer):
    english = [row for row in rows(examples(folder, tokenizer), tokenizer) if row[0] == "en"]
    assert english == [
        ("en", text, text) for text in ("red square left", "blue square above", "grey square", "black square above")
    ]


def test_rows_of_other_languages_stay_when_the_teachers_are_thinned(folder, tokenizer):
    others = [row for row in rows(examples(folder, tokenizer), tokenizer) if row[0] != "en"]
    assert others == rows(examples(folder, tokenizer, include=False), tokenizer)


def test_only_wanted_languages_are_taken(folder, tokenizer):
    assert {row[0] for row in rows(examples(folder, tokenizer, ["fr"], include=False), tokenizer)} == {"fr"}
    assert {row[0] for row in rows(examples(folder, tokenizer, ["en"]), tokenizer)} == {"en"}


@pytest.mark.parametrize("max_tokens", [50, 4])
def test_columns_of_a_row_belong_together(folder, tokenizer, max_tokens):
    found = examples(folder, tokenizer, max_tokens=max_tokens)
    assert (
        len(found) == len(found.tokens) == len(found.teacher_texts) == len(found.groups_N) == len(found.images_N) == 10
    )
    texts = [text for _, text, _ in rows(examples(folder, tokenizer), tokenizer)]
    for ids, text, length in zip(found.tokens, texts, found.lengths_N, strict=True):
        assert ids.tolist() == tokenizer.encode([text], max_tokens)[0].tolist()
        assert length == len(ids) <= max_tokens
    assert (found.images_N == MISSING).all()


def test_rows_with_the_same_teacher_text_are_right_for_each_other(folder, tokenizer):
    found = examples(folder, tokenizer)
    for row in range(len(found)):
        same = [found.teacher_texts[other] == found.teacher_texts[row] for other in range(len(found))]
        assert (found.groups_N == found.groups_N[row]).tolist() == same


@pytest.mark.parametrize("raw", [True, False], ids=["with texts", "binarised only"])
def test_a_folder_of_another_dictionary_gives_the_encoders_own_ids(tmp_path, tokenizer, raw):
    pieces = tokenizer.pieces()[::-1]
    binarize(tmp_path, tokenizer, ("en", "de"), (ENGLISH, GERMAN), raw=raw, pieces=pieces)
    stored = open_bitext(tmp_path).read("train", "en", "de")[1].tokens
    found = examples(tmp_path, tokenizer, include=False)
    expected = tokenizer.encode(GERMAN)
    assert stored[0].tolist() != expected[0].tolist()
    assert [ids.tolist() for ids in found.tokens] == [ids.tolist() for ids in expected]
    assert found.lengths_N.tolist() == [len(ids) for ids in expected]


def test_a_missing_language_is_named_with_those_that_are_there(folder, tokenizer):
    with pytest.raises(DataError, match="no train pair of en with ja; there are en-de, fr-en"):
        examples(folder, tokenizer, ["de", "ja"])


def test_nothing_to_train_on_is_refused(folder, tokenizer):
    with pytest.raises(DataError, match="no train sentence pairs in"):
        examples(folder, tokenizer, ["en"], include=False)


def test_captions_are_a_row_each_with_their_picture(squares, tokenizer):
    captions = read_captions(squares)
    found = tiny.rows_of(rows_from_captions(captions, "train", ["en", "de"], "en", tokenizer.encode))
    assert len(found) == 2 * 72
    chosen = captions.select("train", ["en", "de"])
    assert found.images_N.tolist() == captions.images[chosen].tolist()
    assert [found.languages[number] for number in found.languages_N] == captions.languages[chosen].tolist()
    assert [ids.tolist() for ids in found.tokens] == [ids.tolist() for ids in tokenizer.encode(captions.texts[chosen])]


def test_a_caption_of_the_teachers_language_is_its_own_teacher_text(squares, tokenizer):
    found = tiny.rows_of(rows_from_captions(read_captions(squares), "train", "all", "en", tokenizer.encode))
    for language, text, teacher in rows(found, tokenizer):
        assert teacher == (text if language == "en" else "")


def test_captions_of_one_picture_are_right_for_each_other(squares, tokenizer):
    captions = read_captions(squares)
    found = tiny.rows_of(rows_from_captions(captions, "train", "all", "en", tokenizer.encode))
    assert found.groups_N.tolist() == captions.groups[found.images_N].tolist()
    assert set(np.bincount(found.groups_N)) == {0, 3}  # three languages a picture, and pictures that are held out


@pytest.mark.parametrize(("split", "languages"), [("train", ["en", "ja"]), ("dev", "all")])
def test_captions_that_are_not_there_are_named(squares, tokenizer, split, languages):
    with pytest.raises(DataError, match=r"no (train captions in ja; there are de, en, fr|captions in split 'dev')"):
        rows_from_captions(read_captions(squares), split, languages, "en", tokenizer.encode)


def test_rows_of_several_corpora_come_one_after_the_other(squares: Path, folder: Path, tokenizer: XlmrTokenizer):
    bitexts = [open_bitext(folder), open_bitext(squares / "bitext")]
    how = {"include_teacher_language": True, "max_tokens": 30, "tokenize": tokenizer.encode}
    how |= {"pieces": tokenizer.pieces()}
    joined = tiny.rows_of(rows_from_bitexts(bitexts, "train", ["de", "en", "fr"], "en", **how))
    parts = [tiny.rows_of(rows_from_bitexts([b], "train", ["de", "en", "fr"], "en", **how)) for b in bitexts]
    assert len(joined) == sum(map(len, parts))
    assert np.bincount(joined.sources_N).tolist() == [len(part) for part in parts]
    codes = [joined.languages[number] for number in joined.languages_N]
    assert codes == [part.languages[number] for part in parts for number in part.languages_N]
    assert [list(ids) for ids in joined.tokens] == [list(ids) for part in parts for ids in part.tokens]
    by_text = {text: group for text, group in zip(joined.teacher_texts, joined.groups_N, strict=True)}
    assert [by_text[text] for text in joined.teacher_texts] == joined.groups_N.tolist()


def test_a_language_that_no_corpus_has_is_named(squares: Path, folder: Path, tokenizer: XlmrTokenizer):
    bitexts = [open_bitext(folder), open_bitext(squares / "bitext")]
    how = {"include_teacher_language": True, "max_tokens": 30, "tokenize": tokenizer.encode, "pieces": []}
    with pytest.raises(DataError, match=r"no train pair of en with it in any of"):
        rows_from_bitexts(bitexts, "train", ["de", "it"], "en", **how)


@pytest.mark.parametrize("at_once", [10**6, 1000])
def test_first_occurrences_are_found_range_by_range(monkeypatch: pytest.MonkeyPatch, at_once: int):
    monkeypatch.setattr(datasets, "AT_ONCE", at_once)
    random = np.random.default_rng(0)
    keys_N = random.choice(random.integers(0, 2**64, 9000, np.uint64), 20_000)
    expected = np.zeros(len(keys_N), bool)
    expected[np.unique(keys_N, return_index=True)[1]] = True
    assert np.array_equal(datasets._are_first(keys_N), expected)
    assert not len(datasets._are_first(keys_N[:0]))
