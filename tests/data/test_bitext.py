"""Parallel sentences, long columns, and the rows that a stage makes of sentence pairs and captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data import fairseq_io
from mclip_kit.data.bitext import Bitext, open_bitext, raw_text
from mclip_kit.data.captions import read_captions
from mclip_kit.data.datasets import MISSING, TriangleRows, rows_from_bitext, rows_from_bitexts, rows_from_captions
from mclip_kit.data.sequences import ConcatSequence, TextLines
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError

ENGLISH = ["red square left", "blue square above", "red square left", "grey square"]
GERMAN = ["Quadrat rot links", "Quadrat blau oben", "rot links", "Quadrat grau"]
FRENCH = ["carré rouge gauche", "carré noir haut"]


@pytest.fixture(scope="module")
def tokenizer(squares: Path) -> XlmrTokenizer:
    return XlmrTokenizer(squares / "bitext")


def binarize(
    folder: Path,
    tokenizer: XlmrTokenizer,
    pair: tuple[str, str],
    sides: tuple[list[str], list[str]],
    *,
    split: str = "train",
    raw: bool = True,
    pieces: Sequence[str] | None = None,
) -> None:
    """Write a pair; with `pieces`, ids are those of a dictionary in that order."""
    order = list(pieces or tokenizer.pieces())
    number = {piece: index for index, piece in enumerate(order, 4)}
    for language, lines in zip(pair, sides, strict=True):
        prefix = folder / f"{split}.{'-'.join(pair)}.{language}"
        spm = tokenizer.spm.encode(lines, out_type=str)
        sentences = [np.array([*(number.get(piece, 3) for piece in line), 2]) for line in spm]
        fairseq_io.write_sentences(sentences, prefix, tokenizer.vocabulary)
        fairseq_io.write_dictionary(order, folder / f"dict.{language}.txt")
        if raw:
            raw_text(prefix).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: XlmrTokenizer) -> Path:
    """English with German, and French with English: the teacher's language stands on either side."""
    binarize(tmp_path, tokenizer, ("en", "de"), (ENGLISH, GERMAN))
    binarize(tmp_path, tokenizer, ("fr", "en"), (FRENCH, ["red square left", "black square above"]))
    binarize(tmp_path, tokenizer, ("en", "de"), (ENGLISH[:1], GERMAN[:1]), split="valid")
    return tmp_path


def test_pairs_are_those_of_the_split(folder):
    assert Bitext(folder).pairs("train") == [("en", "de"), ("fr", "en")]
    assert Bitext(folder).pairs("valid") == [("en", "de")]
    assert Bitext(folder).pairs("test") == []


def test_a_pair_is_read_with_its_texts_and_ids(folder, tokenizer):
    source, target = open_bitext(folder).read("train", "en", "de")
    assert (source.language, target.language) == ("en", "de")
    assert (list(source.texts), list(target.texts)) == (ENGLISH, GERMAN)
    assert [ids.tolist() for ids in target.tokens] == [ids.tolist() for ids in tokenizer.encode(GERMAN)]


def test_ids_are_cut_to_the_token_limit_and_texts_are_not(folder, tokenizer):
    _, target = open_bitext(folder).read("train", "en", "de", max_tokens=4)
    assert [ids.tolist() for ids in target.tokens] == [ids.tolist() for ids in tokenizer.encode(GERMAN, 4)]
    assert list(target.texts) == GERMAN


@pytest.mark.parametrize("raw", [True, False], ids=["with texts", "binarised only"])
def test_sides_of_different_length_are_refused(tmp_path, tokenizer, raw):
    binarize(tmp_path, tokenizer, ("en", "de"), (ENGLISH, GERMAN[:3]), raw=raw)
    with pytest.raises(DataError, match=r"train\.en-de: 4 en lines but 3 de lines; prepare the corpus again"):
        Bitext(tmp_path).read("train", "en", "de")


@pytest.mark.parametrize("text", ["red square left\n", "a\nb\nc\nd\ne\n", ""], ids=["fewer", "more", "none"])
def test_as_many_lines_of_text_as_binarised_ones(folder, text):
    (folder / "train.en-de.de.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.en-de\.de\.txt: \d lines of text but 4 binarised ones"):
        Bitext(folder).read("train", "en", "de")


def test_a_folder_without_sentences_is_refused(tmp_path):
    with pytest.raises(DataError, match="no binarised sentences; run mclip-kit prepare or fairseq-preprocess"):
        open_bitext(tmp_path)


def lines(folder: Path, content: bytes) -> TextLines:
    (folder / "lines.txt").write_bytes(content)
    return TextLines(folder / "lines.txt")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\nzwei\n三\n", ["one", "zwei", "三"]),
        ("one\ntwo", ["one", "two"]),
        ("", []),
        ("\n", [""]),
        ("\n\na\n\n", ["", "", "a", ""]),
        ("a\u2028b\x0cc\u0085d\n", ["a\u2028b\x0cc\u0085d"]),
    ],
    ids=["plain", "no newline at the end", "empty file", "empty line", "empty lines", "only newlines separate"],
)
def test_lines_of_a_file(tmp_path, content, expected):
    found = lines(tmp_path, content.encode())
    assert len(found) == len(expected)
    assert list(found) == expected


def test_windows_line_ends_are_no_part_of_a_line(tmp_path):
    assert list(lines(tmp_path, b"one\r\ntwo\r\n")) == ["one", "two"]


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    found = lines(tmp_path, b"one\ntwo\n\xe9t\xe9\nfour\n")
    assert found[3] == "four"
    with pytest.raises(DataError, match=r"lines\.txt line 3: not UTF-8$"):
        found[2]


def test_missing_lines_are_named(tmp_path):
    with pytest.raises(DataError, match=r"lines\.txt: missing; prepare the corpus again"):
        TextLines(tmp_path / "lines.txt")


def test_a_chain_is_one_sequence_after_the_other():
    chain = ConcatSequence(["ab", "", "c", ""])
    assert len(chain) == 3
    assert list(chain) == ["a", "b", "c"]
    assert [chain[np.int64(i)] for i in (2, 0, 1)] == ["c", "a", "b"]


def test_a_chain_ends():
    with pytest.raises(IndexError):
        ConcatSequence(["ab", "c"])[3]
    assert list(ConcatSequence([])) == []


def test_a_chain_counts_from_the_end_too():
    assert ConcatSequence(["ab", "cd"])[-1] == "d"


def examples(
    folder: Path,
    tokenizer: XlmrTokenizer,
    languages: Sequence[str] | str = "all",
    include: bool = True,
    max_tokens: int = 50,
) -> TriangleRows:
    return rows_from_bitext(
        open_bitext(folder), "train", languages, "en", include, max_tokens,
        lambda texts: tokenizer.encode(texts, max_tokens), tokenizer.pieces(),
    )  # fmt: skip


def rows(found: TriangleRows) -> list[tuple[str, str, str]]:
    """Language, student's text, teacher's text of every row."""
    return [
        (found.languages[language], text, teacher)
        for language, text, teacher in zip(found.languages_N, found.texts, found.teacher_texts, strict=True)
    ]


def test_the_other_side_is_the_students_in_either_order_of_a_pair(folder, tokenizer):
    assert rows(examples(folder, tokenizer, include=False)) == [
        *(("de", german, english) for german, english in zip(GERMAN, ENGLISH, strict=True)),
        ("fr", "carré rouge gauche", "red square left"),
        ("fr", "carré noir haut", "black square above"),
    ]


def test_sentences_of_the_teachers_language_come_once(folder, tokenizer):
    english = [row for row in rows(examples(folder, tokenizer)) if row[0] == "en"]
    assert english == [
        ("en", text, text) for text in ("red square left", "blue square above", "grey square", "black square above")
    ]


def test_rows_of_other_languages_stay_when_the_teachers_are_thinned(folder, tokenizer):
    others = [row for row in rows(examples(folder, tokenizer)) if row[0] != "en"]
    assert others == rows(examples(folder, tokenizer, include=False))


def test_only_wanted_languages_are_taken(folder, tokenizer):
    assert {row[0] for row in rows(examples(folder, tokenizer, ["fr"], include=False))} == {"fr"}
    assert {row[0] for row in rows(examples(folder, tokenizer, ["en"]))} == {"en"}


@pytest.mark.parametrize("max_tokens", [50, 4])
def test_columns_of_a_row_belong_together(folder, tokenizer, max_tokens):
    found = examples(folder, tokenizer, max_tokens=max_tokens)
    assert len(found) == len(found.tokens) == len(found.texts) == len(found.groups_N) == len(found.images_N) == 10
    for ids, text, length in zip(found.tokens, found.texts, found.lengths_N, strict=True):
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
    found = rows_from_captions(captions, "train", ["en", "de"], "en", tokenizer.encode)
    assert len(found) == 2 * 72
    chosen = captions.select("train", ["en", "de"])
    assert list(found.texts) == list(captions.texts[chosen])
    assert found.images_N.tolist() == captions.images[chosen].tolist()
    assert [found.languages[number] for number in found.languages_N] == captions.languages[chosen].tolist()
    assert [ids.tolist() for ids in found.tokens] == [ids.tolist() for ids in tokenizer.encode(captions.texts[chosen])]


def test_a_caption_of_the_teachers_language_is_its_own_teacher_text(squares, tokenizer):
    found = rows_from_captions(read_captions(squares), "train", "all", "en", tokenizer.encode)
    for language, text, teacher in rows(found):
        assert teacher == (text if language == "en" else "")


def test_captions_of_one_picture_are_right_for_each_other(squares, tokenizer):
    captions = read_captions(squares)
    found = rows_from_captions(captions, "train", "all", "en", tokenizer.encode)
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
    joined = rows_from_bitexts(bitexts, "train", ["de", "en", "fr"], "en", **how)
    parts = [rows_from_bitext(bitext, "train", ["de", "en", "fr"], "en", **how) for bitext in bitexts]
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
