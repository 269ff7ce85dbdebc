"""A prepared folder: what goes in comes out, it is whole or not there, and damage is named with its file and line."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Cleaning, Content, Corpus, Row, Vocabulary, declaration, shipped_declarations
from mclip_kit.data.prepare.prepare import prepare, write_prepared
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.files import write_whole
from tests import tiny


def with_reader(monkeypatch: pytest.MonkeyPatch, read: Callable[[], Content]) -> Corpus:
    """The tiny declaration, naming a reader that is there for this test."""
    module = SimpleNamespace(read=lambda corpus, source: read())
    monkeypatch.setitem(sys.modules, "mclip_kit.data.corpora.squares", module)
    return tiny.declaration().model_copy(update={"reader": "squares"})


def few(**changes: object) -> Content:
    """Four pictures of the tiny corpus; `changes` are to every row."""
    whole = tiny.content()
    rows = [replace(row, split=split) for row, split in zip(whole.rows, ["train"] * 3 + ["valid"], strict=False)]
    return Content([replace(row, **changes) for row in rows], whole.pixels[:4])


def rows_of(content: Content) -> list[Row]:
    return list(content.rows)


def test_pictures_and_captions_come_back(squares):
    content, captions = tiny.content(), read_captions(squares)
    rows = rows_of(content)
    np.testing.assert_array_equal(captions.pixels, content.pixels)
    assert captions.names.tolist() == [row.image for row in rows]
    assert captions.groups.tolist() == [row.group for row in rows]
    assert captions.strata.tolist() == [row.stratum for row in rows]
    read = zip(captions.images, captions.languages, captions.texts, captions.splits, strict=True)
    assert list(read) == [(image, *text, row.split) for image, row in enumerate(rows) for text in row.texts]


def test_rows_are_selected_by_split_and_language(squares):
    captions = read_captions(squares)
    rows = captions.select("valid", ["de", "fr"])
    assert len(rows) == 2 * 12
    assert set(captions.splits[rows]) == {"valid"}
    assert set(captions.languages[rows]) == {"de", "fr"}
    assert len(captions.select("valid")) == 3 * 12


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_parallel_sentences_are_the_captions_of_one_picture(squares, split):
    rows = [row for row in rows_of(tiny.content()) if row.split == split]
    by_language = {language: [dict(row.texts)[language] for row in rows] for language in ("en", "fr")}
    source, target = open_bitext(squares / "bitext").read(split, "en", "fr")
    assert (list(source.texts), list(target.texts)) == (by_language["en"], by_language["fr"])
    tokenizer = XlmrTokenizer(squares / "bitext")
    assert [ids.tolist() for ids in target.tokens] == [ids.tolist() for ids in tokenizer.encode(by_language["fr"])]


def test_held_out_text_is_not_in_the_vocabulary(squares):
    digit = [piece for piece in XlmrTokenizer(squares / "bitext").pieces() if "3" in piece]
    assert digit == []  # only held-out captions of the tiny corpus say "shade 3"


def test_a_given_vocabulary_is_taken(squares, tmp_path):
    spm = squares / "bitext" / "sentencepiece.bpe.model"
    write_prepared(few, tiny.declaration(), tmp_path / "data", spm)
    assert (tmp_path / "data" / "bitext" / "sentencepiece.bpe.model").read_bytes() == spm.read_bytes()


def test_the_manifest_counts(squares):
    counts = json.loads((squares / "manifest.json").read_text(encoding="utf-8"))["counts"]
    assert counts["images"] == 96
    assert counts["splits"] == {"train": 72, "valid": 12, "test": 12}
    assert counts["captions"] == {split: dict.fromkeys(("en", "de", "fr"), n) for split, n in counts["splits"].items()}
    assert counts["sentence_pairs"] == {split: {"en-de": n, "en-fr": n} for split, n in counts["splits"].items()}
    assert (counts["missing_pictures"], counts["left_out"]) == (0, {})
    assert {split: sum(strata.values()) for split, strata in counts["strata"].items()} == counts["splits"]


def test_the_manifest_has_the_hash_of_every_other_file(squares):
    files = json.loads((squares / "manifest.json").read_text(encoding="utf-8"))["files"]
    found = {
        path.relative_to(squares).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in squares.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert files == found


def test_the_manifest_has_the_licences(squares):
    manifest = json.loads((squares / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["licences"] == [{"what": "all", "licence": "none needed", "by": "these tests", "package": None}]


ODD = [
    "a red\nsquare",
    "a red\tsquare",
    "a red\r\nsquare",
    " a  red square\n",
    'a "red" square',
    "'red' \\ #",
    "a\u2028b\u0085c",
]


@pytest.mark.parametrize("text", ODD)
def test_any_caption_comes_back_on_one_line(tmp_path, text):
    first, *others = rows_of(few())
    odd = replace(first, texts=[("en", text), *first.texts[1:]])
    write_prepared(lambda: replace(few(), rows=[odd, *others]), tiny.declaration(), tmp_path / "data")
    source, _ = open_bitext(tmp_path / "data" / "bitext").read("train", "en", "de")
    expected = " ".join(text.split())
    assert read_captions(tmp_path / "data").texts[0] == expected
    assert source.texts[0] == expected


def test_preparing_twice_keeps_the_folder(tmp_path, monkeypatch):
    reads = []
    corpus = with_reader(monkeypatch, lambda: reads.append(1) or few())
    first = prepare(corpus, tmp_path / "data")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert prepare(corpus, tmp_path / "data") == first
    assert len(reads) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == written


@pytest.mark.parametrize("change", [{"splits": {"test": 0.5}}, {"languages": ["en", "de"]}, {"options": {"size": 8}}])
def test_a_folder_of_another_declaration_is_refused(tmp_path, monkeypatch, change):
    corpus = with_reader(monkeypatch, few)
    prepare(corpus, tmp_path / "data")
    with pytest.raises(DataError, match="prepared from another declaration or source; replace it with --again, or"):
        prepare(corpus.model_copy(update=change), tmp_path / "data")


def test_a_declaration_in_other_words_is_the_same(tmp_path, monkeypatch):
    corpus = with_reader(monkeypatch, few)
    manifest = prepare(corpus, tmp_path / "data")
    other = corpus.model_copy(update={"about": "other squares", "notes": ["new"]})
    assert prepare(other, tmp_path / "data") == manifest


def test_a_folder_with_another_vocabulary_is_refused(squares, tmp_path, monkeypatch):
    corpus = with_reader(monkeypatch, few)
    prepare(corpus, tmp_path / "data")
    with pytest.raises(DataError, match="prepared from another declaration"):
        prepare(corpus, tmp_path / "data", squares / "bitext" / "sentencepiece.bpe.model")


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["no manifest", "not JSON", "not a mapping"])
def test_a_folder_that_is_no_corpus_is_refused_and_kept(tmp_path, monkeypatch, content):
    out = tmp_path / "data"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    if content is not None:
        (out / "manifest.json").write_text(content)
    with pytest.raises(DataError, match="exists and is not a prepared corpus"):
        prepare(with_reader(monkeypatch, few), out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_lost_file_is_noticed(tmp_path, monkeypatch):
    corpus = with_reader(monkeypatch, few)
    prepare(corpus, tmp_path / "data")
    (tmp_path / "data" / "bitext" / "dict.de.txt").unlink()
    with pytest.raises(DataError, match=r"dict\.de\.txt: missing; replace it with --again"):
        prepare(corpus, tmp_path / "data")


def breaking(rows: list[Row]) -> Iterator[Row]:
    """Rows of a source that ends in the middle."""
    yield from rows
    raise OSError("the source broke off")


def test_a_reader_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    corpus = with_reader(monkeypatch, lambda: replace(few(), rows=breaking(rows_of(few()))))
    with pytest.raises(OSError, match="broke off"):
        prepare(corpus, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_cannot_be_trained_leaves_nothing(tmp_path):
    corpus = tiny.declaration().model_copy(update={"vocabulary": Vocabulary(pieces=5, coverage=1.0)})
    with pytest.raises(DataError, match="SentencePiece cannot train 5 pieces"):
        write_prepared(few, corpus, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_held_out_text_alone_is_not_binarised_without_a_vocabulary(squares, tmp_path, capsys):
    spm = squares / "bitext" / "sentencepiece.bpe.model"
    write_prepared(lambda: few(split="test"), tiny.declaration(), tmp_path / "without")
    assert "give one: --spm" in capsys.readouterr().out
    assert not (tmp_path / "without" / "bitext").exists()
    assert len(read_captions(tmp_path / "without").select("test")) == 12
    write_prepared(lambda: few(split="test"), tiny.declaration(), tmp_path / "with", spm)
    assert len(open_bitext(tmp_path / "with" / "bitext").read("test", "en", "de")[0].texts) == 4


def test_a_pair_of_which_nothing_is_short_enough_is_named(tmp_path):
    short = {"cleaning": Cleaning(max_tokens=3, too_long="drop")}
    with pytest.raises(DataError, match="all sentence pairs of train en-de are longer than 3"):
        write_prepared(few, tiny.declaration().model_copy(update=short), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_is_refused_with_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"the corpus is empty; made by tests/tiny\.py"):
        write_prepared(lambda: Content([]), tiny.declaration(), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_share_a_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="4 pictures have 1 names"):
        write_prepared(lambda: few(image="same"), tiny.declaration(), tmp_path / "data")


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ({"images": 5}, "images: 4 found, 5 expected"),
        ({"images.valid": 2}, r"images\.valid: 1 found, 2 expected"),
        ({"captions.train.de": 4}, r"captions\.train\.de: 3 found, 4 expected"),
        ({"pairs.train.en-fr": 1}, r"pairs\.train\.en-fr: 3 found, 1 expected"),
        ({"captions.test.de": 4}, r"captions\.test\.de: 0 found, 4 expected"),
    ],
)
def test_counts_that_differ_are_named(tmp_path, expect, said):
    with pytest.raises(DataError, match=f"{said}.*--set expect="):
        write_prepared(few, tiny.declaration().model_copy(update={"expect": expect}), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_former_file(tmp_path):
    target = tmp_path / "table.tsv"
    target.write_text("whole")

    def fail() -> None:
        with write_whole(target) as temporary:
            temporary.write_text("hal")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "whole"
    assert os.listdir(tmp_path) == ["table.tsv"]


def test_an_unknown_reader_is_named(tmp_path):
    with pytest.raises(DataError, match="no corpus reader 'none'"):
        prepare(tiny.declaration(), tmp_path / "data")


def replaced(name: str, before: str, after: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert before in text
        (folder / name).write_text(text.replace(before, after, 1), encoding="utf-8")

    return damage


def cut(name: str, kept: int | None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])

    return damage


DAMAGE = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json"),
    "wrong header": (replaced("captions.tsv", "language", "lang"), r"captions\.tsv line 1: columns are image, lang,"),
    "missing column": (replaced("captions.tsv", "black-left-2\tde\t", "black-left-2\t"), r"captions\.tsv line 201: 3 "),
    "a column too many": (replaced("images.tsv", "red-left-1\t", "red-left-1\t\t"), r"images\.tsv line 3: 4 columns"),
    "unknown image": (replaced("captions.tsv", "red-left-1\ten", "red-left-9\ten"), r"captions\.tsv line 5: its image"),
    "group without a number": (replaced("images.tsv", "red-left-1\t1", "red-left-1\tone"), r"images\.tsv line 3"),
    "Latin-1": (lambda folder: (folder / "captions.tsv").write_bytes(b"carr\xe9"), r"captions\.tsv: not a UTF-8 table"),
    "empty table": (cut("images.tsv", 0), r"images\.tsv"),
    "a picture less": (
        replaced("images.tsv", "grey-below-3\t95\teven\n", ""),
        r"captions\.tsv line 287: its image is not in images\.tsv",
    ),
    "missing table": (
        lambda folder: (folder / "captions.tsv").unlink(),
        r"captions\.tsv: missing; prepare it",
    ),
    "missing pictures": (lambda folder: (folder / "images.npy").unlink(), r"images\.npy"),
    "pictures cut in half": (cut("images.npy", 30_000), r"images\.npy"),
    "pictures cut in their header": (cut("images.npy", 40), r"images\.npy"),
    "no picture left": (cut("images.npy", 0), r"images\.npy"),
    "garbage for pictures": (lambda folder: (folder / "images.npy").write_bytes(b"garbage"), r"images\.npy"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_file_and_line(squares, tmp_path, name):
    damage, expected = DAMAGE[name]
    folder = tiny.as_text(Path(shutil.copytree(squares, tmp_path / "copy")))
    damage(folder)
    with pytest.raises(DataError, match=expected) as caught:
        read_captions(folder)
    assert "\n" not in str(caught.value)


DECLARED = (
    "cc3m cc3m_webdataset coco coco_cn crossmodal3600 emoji emoji_cldr flickr30k flickr30k_cn imagenet imagenet_a "
    "imagenet_r imagenet_sketch imagenet_v2 mclip_translations multi30k objectnet opus translation2019zh tsl2019 "
    "wit xtd10"
)


def test_every_shipped_declaration_loads():
    assert [path.stem for path in shipped_declarations()] == DECLARED.split(" ")
    for path in shipped_declarations():
        corpus = declaration(path.stem)
        assert corpus.languages
        assert corpus.licences


def test_an_unknown_corpus_is_named_with_those_that_are_shipped():
    with pytest.raises(RecipeError, match=r"emojis: .* did you mean emoji"):
        declaration("emojis")
