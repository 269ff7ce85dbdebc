"""Rows of translation stages: sentence pairs by direction, kept as columns."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.row_files import open_folder
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.data.translation_rows import TranslationRows, open_translation_rows, write_translation_rows
from tests.data.small_bitext import ENGLISH, GERMAN, binarize, write_bitext


@pytest.fixture
def made(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Makes the rows of some bitexts: folders, wanted directions, the encoder's pieces, most tokens."""

    def pairs(
        folders: list[Path], wanted: list[str] | str = "all", pieces: list[str] | None = None, longest: int = 64
    ) -> TranslationRows:
        tokenizer, folder = XlmrTokenizer(folders[0]), tmp_path / f"rows-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        known = tokenizer.pieces() if pieces is None else pieces
        given = [open_bitext(f) for f in folders], "train", wanted, longest
        write_translation_rows(folder, *given, lambda texts: tokenizer.encode(texts, longest), known)
        return open_translation_rows(folder)

    return pairs


def test_every_pair_is_read_both_ways_and_kept_once(squares: Path, made) -> None:  # type: ignore[no-untyped-def]
    found, tokenizer = made([squares / "bitext"]), XlmrTokenizer(squares / "bitext")
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
    assert [len(ids) for ids in found.sources] == found.source_lengths_N.tolist()
    assert len(open_folder(found.folder)[1]["tokens_end"]) == 4 * 72  # sentences: two pairs of sides


def test_some_directions_of_several_corpora(squares: Path, made) -> None:  # type: ignore[no-untyped-def]
    found = made([squares / "bitext"] * 2, ["de-en", "en-fr"])
    assert found.directions == [("de", "en"), ("en", "fr")]
    assert found.directions_N.tolist() == [0] * 72 + [1] * 72 + [0] * 72 + [1] * 72
    assert found.corpora_N.tolist() == [0] * 144 + [1] * 144


@pytest.mark.parametrize("longest", [64, 6])
def test_other_pieces_are_tokenised_again(squares: Path, made, longest: int) -> None:  # type: ignore[no-untyped-def]
    same, again = (made([squares / "bitext"], pieces=pieces, longest=longest) for pieces in (None, ["other"]))
    for side in ("sources", "targets"):
        assert all(np.array_equal(a, b) for a, b in zip(getattr(same, side), getattr(again, side), strict=True))
    assert same.lengths_N.tolist() == again.lengths_N.tolist()
    assert same.lengths_N.max() == 6 or longest > 6


def test_a_folder_with_a_pair_in_both_orders_has_two_corpora_of_it(squares: Path, tmp_path: Path, made) -> None:  # type: ignore[no-untyped-def]
    tokenizer, folder = XlmrTokenizer(squares / "bitext"), tmp_path / "bitext"
    folder.mkdir()
    write_bitext(folder, tokenizer)
    (folder / "sentencepiece.bpe.model").write_bytes((squares / "bitext" / "sentencepiece.bpe.model").read_bytes())
    binarize(folder, tokenizer, ("de", "en"), (GERMAN[:1], ENGLISH[1:2]))
    found = made([folder], ["en-de", "de-en"])
    sources = [tokenizer.decode(ids) for ids in found.sources]
    assert sources == [*ENGLISH, GERMAN[0]]
    assert tokenizer.decode(found.targets[4]) == ENGLISH[1]
