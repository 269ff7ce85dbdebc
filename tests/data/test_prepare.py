"""A prepared folder: what goes in comes out, it is whole or not there, and damage is named with its file and line."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Caption, Content, Corpus, declaration, declared
from mclip_kit.data.prepare import prepare, write
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.files import write_whole
from tests import tiny


def with_reader(monkeypatch: pytest.MonkeyPatch, read: Callable[[Corpus], Content]) -> Corpus:
    """The tiny declaration, naming a reader that is there for this test."""
    monkeypatch.setitem(sys.modules, "mclip_kit.data.corpora.squares", SimpleNamespace(read=read))
    return tiny.declaration().model_copy(update={"reader": "squares"})


def few(**changes: object) -> Content:
    """Four pictures of the tiny corpus."""
    whole = tiny.content()
    rows = slice(0, 4)
    captions = [caption for caption in whole.captions if caption.image < 4]
    splits = ["train", "train", "train", "valid"]
    parts = (whole.names[rows], splits, whole.groups[rows], whole.strata[rows], whole.pixels[rows], captions)
    return replace(Content(*parts), **changes)


def test_pictures_and_captions_come_back(squares):
    content, captions = tiny.content(), read_captions(squares)
    np.testing.assert_array_equal(captions.pixels, content.pixels)
    assert captions.names == content.names
    assert captions.groups.tolist() == content.groups
    assert captions.strata.tolist() == content.strata
    read = zip(captions.images, captions.languages, captions.texts, captions.splits, strict=True)
    assert list(read) == [(c.image, c.language, c.text, content.splits[c.image]) for c in content.captions]


def test_rows_are_selected_by_split_and_language(squares):
    captions = read_captions(squares)
    rows = captions.select("valid", ["de", "fr"])
    assert len(rows) == 2 * 12
    assert set(captions.splits[rows]) == {"valid"}
    assert set(captions.languages[rows]) == {"de", "fr"}
    assert len(captions.select("valid")) == 3 * 12


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_parallel_sentences_are_the_captions_of_one_picture(squares, split):
    content = tiny.content()
    by_language = {
        language: [c.text for c in content.captions if c.language == language and content.splits[c.image] == split]
        for language in ("en", "fr")
    }
    source, target = open_bitext(squares / "bitext").read(split, "en", "fr")
    assert (list(source.texts), list(target.texts)) == (by_language["en"], by_language["fr"])
    tokenizer = XlmrTokenizer(squares / "bitext")
    assert [ids.tolist() for ids in target.tokens] == [ids.tolist() for ids in tokenizer.encode(by_language["fr"])]


def test_held_out_text_is_not_in_the_vocabulary(squares):
    digit = [piece for piece in XlmrTokenizer(squares / "bitext").pieces() if "3" in piece]
    assert digit == []  # only held-out captions of the tiny corpus say "shade 3"


def test_a_given_vocabulary_is_taken(squares, tmp_path):
    spm = squares / "bitext" / "sentencepiece.bpe.model"
    write(few(), tiny.declaration(), tmp_path / "data", spm)
    assert (tmp_path / "data" / "bitext" / "sentencepiece.bpe.model").read_bytes() == spm.read_bytes()


def test_the_manifest_counts(squares):
    counts = json.loads((squares / "manifest.json").read_text(encoding="utf-8"))["counts"]
    assert counts["images"] == 96
    assert counts["splits"] == {"train": 72, "valid": 12, "test": 12}
    assert counts["captions"] == {"en": 96, "de": 96, "fr": 96}
    assert counts["sentence_pairs"] == 2 * 96
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
    content = few()
    captions = [Caption(0, "en", text), *content.captions[1:]]
    write(replace(content, captions=captions), tiny.declaration(), tmp_path / "data")
    source, _ = open_bitext(tmp_path / "data" / "bitext").read("train", "en", "de")
    expected = " ".join(text.split())
    assert read_captions(tmp_path / "data").texts[0] == expected
    assert " ".join(source.texts[0].split()) == expected


def test_preparing_twice_keeps_the_folder(tmp_path, monkeypatch):
    reads = []
    corpus = with_reader(monkeypatch, lambda corpus: reads.append(corpus) or few())
    first = prepare(corpus, tmp_path / "data")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert prepare(corpus, tmp_path / "data") == first
    assert len(reads) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == written


@pytest.mark.parametrize("change", [{"about": "other squares"}, {"languages": ["en", "de"]}, {"options": {"size": 8}}])
def test_a_folder_of_another_declaration_is_refused(tmp_path, monkeypatch, change):
    corpus = with_reader(monkeypatch, lambda corpus: few())
    prepare(corpus, tmp_path / "data")
    with pytest.raises(DataError, match="prepared from another declaration; remove it or choose another --out"):
        prepare(corpus.model_copy(update=change), tmp_path / "data")


def test_a_folder_with_another_vocabulary_is_refused(squares, tmp_path, monkeypatch):
    corpus = with_reader(monkeypatch, lambda corpus: few())
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
        prepare(with_reader(monkeypatch, lambda corpus: few()), out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_lost_file_is_noticed(tmp_path, monkeypatch):
    corpus = with_reader(monkeypatch, lambda corpus: few())
    prepare(corpus, tmp_path / "data")
    (tmp_path / "data" / "bitext" / "dict.de.txt").unlink()
    with pytest.raises(DataError, match=r"dict\.de\.txt: missing; remove .* and prepare it again"):
        prepare(corpus, tmp_path / "data")


class Breaking(Sequence[Caption]):
    """Captions of a source that ends in the middle."""

    def __init__(self, captions: Sequence[Caption], after: int) -> None:
        self.captions, self.after = captions, after

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index):
        return self.captions[index]

    def __iter__(self) -> Iterator[Caption]:
        yield from self.captions[: self.after]
        raise OSError("the source broke off")


def test_a_reader_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    content = few()
    corpus = with_reader(monkeypatch, lambda corpus: replace(content, captions=Breaking(content.captions, 5)))
    with pytest.raises(OSError, match="broke off"):
        prepare(corpus, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_cannot_be_trained_leaves_nothing(tmp_path):
    held_out = few(splits=["valid"] * 4)
    with pytest.raises(DataError, match="no text"):
        write(held_out, tiny.declaration(), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_is_refused_with_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"the corpus is empty; made by tests/tiny\.py"):
        write(few(captions=[]), tiny.declaration(), tmp_path / "data")


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
        r"images\.npy has 96 .*, images\.tsv 95",
    ),
    "missing table": (lambda folder: (folder / "captions.tsv").unlink(), r"captions\.tsv: missing; prepare the corpus"),
    "missing pictures": (lambda folder: (folder / "images.npy").unlink(), r"images\.npy"),
    "pictures cut in half": (cut("images.npy", 30_000), r"images\.npy"),
    "pictures cut in their header": (cut("images.npy", 40), r"images\.npy"),
    "no picture left": (cut("images.npy", 0), r"images\.npy"),
    "garbage for pictures": (lambda folder: (folder / "images.npy").write_bytes(b"garbage"), r"images\.npy"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_file_and_line(squares, tmp_path, name):
    damage, expected = DAMAGE[name]
    folder = Path(shutil.copytree(squares, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(DataError, match=expected) as caught:
        read_captions(folder)
    assert "\n" not in str(caught.value)


def test_every_shipped_declaration_loads():
    assert [path.name for path in declared()] == ["emoji.yaml"]
    for path in declared():
        corpus = declaration(path.stem)
        assert corpus.languages
        assert corpus.licences


def test_an_unknown_corpus_is_named_with_those_that_are_shipped():
    with pytest.raises(RecipeError, match=r"emojis: .* did you mean emoji"):
        declaration("emojis")
