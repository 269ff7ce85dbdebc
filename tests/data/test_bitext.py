"""Parallel sentences of a binarised folder."""

from pathlib import Path

import pytest

from mclip_kit.data.bitext import Bitext, find_directions, open_bitext
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError
from tests.data.small_bitext import ENGLISH, GERMAN, binarize, write_bitext


@pytest.fixture(scope="module")
def tokenizer(squares: Path) -> XlmrTokenizer:
    return XlmrTokenizer(squares / "bitext")


@pytest.fixture
def folder(tmp_path: Path, tokenizer: XlmrTokenizer) -> Path:
    return write_bitext(tmp_path, tokenizer)


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
    with pytest.raises(DataError, match=r"train\.en-de: 4 en lines but 3 de lines; prepare it with --again"):
        Bitext(tmp_path).read("train", "en", "de")


@pytest.mark.parametrize("text", ["red square left\n", "a\nb\nc\nd\ne\n", ""], ids=["fewer", "more", "none"])
def test_as_many_lines_of_text_as_binarised_ones(folder, text):
    (folder / "train.en-de.de.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.en-de\.de\.txt: \d lines of text but 4 binarised ones"):
        Bitext(folder).read("train", "en", "de")


def test_a_folder_without_sentences_is_refused(tmp_path):
    with pytest.raises(DataError, match="no binarised sentences; run mclip-kit prepare or fairseq-preprocess"):
        open_bitext(tmp_path)


def test_a_direction_that_does_not_exist_is_named(squares: Path) -> None:
    bitext = open_bitext(squares / "bitext")
    with pytest.raises(DataError, match="no train pair for de-fr; there are en-de, de-en, en-fr, fr-en"):
        find_directions([bitext], "train", ["en-de", "de-fr"])
    with pytest.raises(DataError, match=r"bitext: no sentences in split 'dev'; there are test, train, valid"):
        find_directions([bitext], "dev")
