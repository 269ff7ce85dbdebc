"""Files that line up: Multi30K's, XTD10's, OPUS's, and any pair."""

import gzip
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mclip_kit.data.corpora import Corpus, Row, declaration
from mclip_kit.data.corpora.lines import read
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.errors import DataError, RecipeError


def corpus(*parts: dict[str, Any], languages: tuple[str, ...] = ("en", "de")) -> Corpus:
    tree = {"about": "x", "reader": "lines", "languages": list(languages), "licences": [], "obtain": "make it"}
    return Corpus.model_validate(tree | {"options": {"parts": list(parts)}})


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def rows(declared: Corpus, root: Path) -> list[Row]:
    return list(read(declared, Source(root, obtain=declared.obtain)).rows)


def test_lines_of_all_languages_make_a_row(tmp_path):
    write(tmp_path / "train.en.gz", "a", "b")
    write(tmp_path / "train.de", "A", "B", end="\r\n")
    write(tmp_path / "pictures.txt", "1.jpg#12", " 2.jpg ")
    part = {"split": "train", "texts": "train.{language}", "images": "pictures.txt", "parallel": True, "rows": 2}
    assert rows(corpus(part), tmp_path) == [
        Row("train", [("en", "a"), ("de", "A")], "1.jpg", parallel=True),
        Row("train", [("en", "b"), ("de", "B")], "2.jpg", parallel=True),
    ]


def test_several_captions_a_language(tmp_path):
    for number, text in enumerate("xyz", 1):
        write(tmp_path / f"t.{number}.en", text)
    part = {"split": "train", "texts": "t.{n}.{language}", "captions": 3}
    assert rows(corpus(part, languages=("en",)), tmp_path) == [Row("train", [("en", "x"), ("en", "y"), ("en", "z")])]


@pytest.mark.parametrize("pair", ["de-en", "en-de"])
@pytest.mark.parametrize("packed", ["zip", "gz", "plain"])
def test_opus_files_in_either_order_of_their_pair(tmp_path, pair, packed):
    if packed == "zip":
        with zipfile.ZipFile(tmp_path / "Books.zip", "w") as archive:
            archive.writestr("README", "read me")
            archive.writestr(f"Books.{pair}.en", "a\n")
            archive.writestr(f"Books.{pair}.de", "A\n")
    else:
        for language, text in (("en", "a"), ("de", "A")):
            write(tmp_path / f"Books.{pair}.{language}{'.gz' if packed == 'gz' else ''}", text)
    opus = declaration("opus").with_languages(["en", "de"])
    assert rows(opus, tmp_path) == [Row("", [("en", "a"), ("de", "A")], parallel=True)]


def test_a_zip_itself_may_be_the_source(tmp_path):
    with zipfile.ZipFile(tmp_path / "Books.zip", "w") as archive:
        archive.writestr("Books.de-en.en", "a\n")
        archive.writestr("Books.de-en.de", "A\n")
    assert len(rows(declaration("opus").with_languages(["en", "de"]), tmp_path / "Books.zip")) == 1


def test_only_the_pairs_that_are_there_are_read(tmp_path):
    for language in ("en", "fr"):
        write(tmp_path / f"x.en-fr.{language}", language)
    assert [row.texts for row in rows(declaration("opus"), tmp_path)] == [[("en", "en"), ("fr", "fr")]]


def test_another_spelling_of_a_language_is_found(tmp_path):
    write(tmp_path / "t_en.txt", "a")
    write(tmp_path / "t_jp.txt", "b")
    part = {"split": "test", "texts": "t_{language}.txt"}
    assert rows(corpus(part, languages=("en", "ja")), tmp_path) == [Row("test", [("en", "a"), ("ja", "b")])]


@pytest.mark.parametrize(("english", "german", "fewer"), [(3, 2, "de"), (1, 4, "en")])
def test_files_that_do_not_line_up_are_named_with_their_counts(tmp_path, english, german, fewer):
    write(tmp_path / "t.en", *["x"] * english)
    write(tmp_path / "t.de", *["y"] * german)
    with pytest.raises(
        DataError,
        match=rf"{max(english, german)} lines, but .*t\.{fewer} has {min(english, german)}; the numbers must be equal",
    ):
        rows(corpus({"texts": "t.{language}"}), tmp_path)


def test_a_file_with_another_count_than_declared_is_named(tmp_path):
    for language in ("en", "de"):
        write(tmp_path / f"t.{language}", "x")
    with pytest.raises(DataError, match=r"t\.en: 1 lines, not 1,000"):
        rows(corpus({"texts": "t.{language}", "rows": 1000}), tmp_path)


def test_a_missing_part_is_named_unless_it_is_optional(tmp_path):
    for language in ("en", "de"):
        write(tmp_path / f"t.{language}", "x")
    there, gone = {"texts": "t.{language}"}, {"texts": "u.{language}"}
    with pytest.raises(DataError, match=r"u\.en is missing, plain or compressed; make it"):
        rows(corpus(there, gone), tmp_path)
    assert len(rows(corpus(there, gone | {"optional": True}), tmp_path)) == 1
    with pytest.raises(DataError, match="no files of this corpus in en, de; make it"):
        rows(corpus(gone | {"optional": True}), tmp_path)


def test_two_files_that_fit_are_both_named(tmp_path):
    for folder in "ab":
        for language in ("en", "de"):
            write(tmp_path / folder / f"t.{language}", "x")
    with pytest.raises(DataError, match=r"a/t\.en and .*b/t\.en both match t\.en; give a --source"):
        rows(corpus({"texts": "t.{language}"}), tmp_path)
    assert len(rows(corpus({"texts": "a/t.{language}"}), tmp_path)) == 1


def test_a_byte_order_mark_is_no_part_of_a_picture_s_name(tmp_path):
    (tmp_path / "images.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n")
    assert list(File(tmp_path / "images.txt").lines()) == ["a.jpg", "b.jpg"]


def test_a_plain_file_comes_before_the_same_one_compressed(tmp_path):
    (tmp_path / "train.en").write_text("mended\n")
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"as it was\n"))
    assert list(Source(tmp_path).require("train.en").lines()) == ["mended"]


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    write(tmp_path / "t.en", "x", "y")
    (tmp_path / "t.de").write_bytes(b"gut\ns\xfc\xdf\n")
    with pytest.raises(DataError, match=r"t\.de line 2: not UTF-8 \(byte 0xfc\)"):
        rows(corpus({"texts": "t.{language}"}), tmp_path)


def test_a_broken_gz_is_named_with_what_was_whole(tmp_path):
    whole = write(tmp_path / "t.en.gz", *(f"line {number} {hash(str(number))}" for number in range(5000)))
    whole.write_bytes(whole.read_bytes()[:-2000])
    write(tmp_path / "t.de", *["x"] * 5000)
    with pytest.raises(DataError, match=r"t\.en\.gz: cannot be read .* lines were whole"):
        rows(corpus({"texts": "t.{language}"}), tmp_path)


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(
        RecipeError, match=r"options of reader lines: .*parts\.0\.text: unknown key; did you mean texts"
    ):
        rows(corpus({"text": "t.{language}"}), tmp_path)
    with pytest.raises(RecipeError, match=r"captions above 1 needs \{n\} in texts"):
        rows(corpus({"texts": "t.{language}", "captions": 2}), tmp_path)
