"""Sentence pairs by direction: both ways of every pair, several corpora, lengths of the longer side."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.bitext import find_directions, open_bitext
from mclip_kit.data.datasets import TranslationRows, translation_rows
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError


def pairs(folders: list[Path], wanted: list[str] | str = "all", pieces: list[str] | None = None) -> TranslationRows:
    tokenizer = XlmrTokenizer(folders[0])
    known = tokenizer.pieces() if pieces is None else pieces
    return translation_rows([open_bitext(f) for f in folders], "train", wanted, 64, tokenizer.encode, known)


def test_every_pair_is_read_both_ways(squares: Path) -> None:
    found, tokenizer = pairs([squares / "bitext"]), XlmrTokenizer(squares / "bitext")
    assert found.directions == [("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en")]
    assert found.languages == ["de", "en", "fr"]
    assert len(found) == len(found.sources) == len(found.targets) == 4 * 72
    forth, back = (int(np.flatnonzero(found.directions_N == number)[5]) for number in (0, 1))
    assert np.array_equal(found.sources[forth], found.targets[back])
    assert np.array_equal(found.targets[forth], found.sources[back])
    assert tokenizer.decode(found.sources[forth]).startswith("red square")
    assert tokenizer.decode(found.targets[forth]).startswith("Quadrat rot")
    lengths = [max(len(a), len(b)) for a, b in zip(found.sources, found.targets, strict=True)]
    assert lengths == found.lengths_N.tolist()


def test_some_directions_of_several_corpora(squares: Path) -> None:
    found = pairs([squares / "bitext"] * 2, ["de-en", "en-fr"])
    assert found.directions == [("de", "en"), ("en", "fr")]
    assert found.directions_N.tolist() == [0] * 72 + [1] * 72 + [0] * 72 + [1] * 72
    assert found.corpora_N.tolist() == [0] * 144 + [1] * 144


def test_other_pieces_are_tokenised_anew(squares: Path) -> None:
    same, anew = pairs([squares / "bitext"]), pairs([squares / "bitext"], pieces=["other"])
    assert all(np.array_equal(a, b) for a, b in zip(same.sources, anew.sources, strict=True))
    assert same.lengths_N.tolist() == anew.lengths_N.tolist()


def test_what_is_not_there_is_named(squares: Path) -> None:
    bitext = open_bitext(squares / "bitext")
    with pytest.raises(DataError, match="no train pair for de-fr; there are en-de, de-en, en-fr, fr-en"):
        find_directions([bitext], "train", ["en-de", "de-fr"])
    with pytest.raises(DataError, match="no dev pair; there are none"):
        find_directions([bitext], "dev")
