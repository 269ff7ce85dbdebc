"""Shards: what lies in a tar comes out as rows, in place, and what is wrong with one is named."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mclip_kit.data import images
from mclip_kit.data.corpora import Corpus, Row, declaration, webdataset
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.features import hashing

pytest.importorskip("webdataset")
Member = tuple[str, bytes | str | dict[str, Any]]


def picture(shade: int, kind: str = "PNG") -> bytes:
    """A small picture's file."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def content(value: bytes | str | dict[str, Any]) -> bytes:
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()


def shard(path: Path, given: Iterable[Member | tarfile.TarInfo], mode: str = "w") -> Path:
    """A tar of some members, in their order; one that is given as a header has no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member in given:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(content(member[1]))
            tar.addfile(info, io.BytesIO(content(member[1])))
    return path


def headers(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return tar.getmembers()


def sample(key: str, caption: str, shade: int = 1, **more: Any) -> list[Member]:
    """A sample as img2dataset writes it."""
    facts = {"caption": caption, "url": "https://example.org", "key": key, "status": "success"} | more
    return [(f"{key}.jpg", picture(shade, "JPEG")), (f"{key}.json", facts), (f"{key}.txt", caption)]


def corpus(*languages: str, **options: Any) -> Corpus:
    tree = {"about": "shards", "reader": "webdataset", "languages": languages or ["en"], "licences": [], "obtain": "x"}
    return Corpus.model_validate(tree | {"options": {"shards": "*.tar"} | options})


def rows(root: Path | None, *languages: str, **options: Any) -> list[Row]:
    return list(webdataset.read(corpus(*languages, **options), Source(root)).rows)


def test_samples_become_rows_whose_pictures_lie_in_the_tar(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", [*sample("000000000", "a dog", 10), *sample("000000003", "a cat\non a mat", 90)])
    shard(tmp_path / "00001.tar", sample("000010000", "ein Hund, äöü", 200))
    (tmp_path / "00000.parquet").write_bytes(b"no shard")
    (tmp_path / "00000_stats.json").write_text("{}")
    found = rows(tmp_path, split="train", shards="*")
    assert [row.image for row in found] == ["00000/000000000", "00000/000000003", "00001/000010000"]
    assert [row.texts for row in found] == [[("en", "a dog")], [("en", "a cat\non a mat")], [("en", "ein Hund, äöü")]]
    assert {row.split for row in found} == {"train"}
    for row, shade in zip(found, (10, 90, 200), strict=True):
        assert row.file
        assert images.container(Path(row.file)).is_absolute()
        assert images.read_bytes(Path(row.file)) == picture(shade, "JPEG")


def test_features_know_a_picture_in_a_tar_as_the_same_file_outside(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", [*sample("a", "one", 10), *sample("b", "two", 90)])
    (tmp_path / "b.jpg").write_bytes(picture(90, "JPEG"))
    inside = [Path(str(row.file)) for row in rows(tmp_path)]
    first, second, outside = hashing.hash_files([*inside, tmp_path / "b.jpg"], tmp_path / "files.sqlite")
    assert second.tolist() == outside.tolist()
    assert first.tolist() != outside.tolist()


def test_captions_come_from_the_text_else_from_the_json(tmp_path: Path) -> None:
    facts = {"caption": "of the json", "alt": ["one", "two"], "nothing": None}
    both: list[Member] = [("a.png", picture(1)), ("a.json", facts), ("a.txt", "of the text")]
    shard(tmp_path / "0.tar", both)
    assert rows(tmp_path)[0].texts == [("en", "of the text")]
    assert rows(tmp_path, text="json:caption")[0].texts == [("en", "of the json")]
    assert rows(tmp_path, text="json:alt")[0].texts == [("en", "one"), ("en", "two")]
    assert rows(tmp_path, text="json:nothing") == []
    shard(tmp_path / "0.tar", both[:2])
    assert rows(tmp_path)[0].texts == [("en", "of the json")]


def test_languages_are_the_corpus_s_or_the_field_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [("a", "eins", "DE"), ("b", "one", "en"), ("c", "un", "fr"), ("d", "?", None)]
    shard(tmp_path / "0.tar", [part for key, text, code in samples for part in sample(key, text, LANGUAGE=code)])
    assert {text[0] for row in rows(tmp_path, "en", "de") for text in row.texts} == {"en"}
    assert {text[0] for row in rows(tmp_path, "en", "de", language="de") for text in row.texts} == {"de"}
    capsys.readouterr()
    assert [row.texts for row in rows(tmp_path, "en", "de", language_field="LANGUAGE")] == [
        [("de", "eins")],
        [("en", "one")],
    ]
    said = "".join(capsys.readouterr())
    assert "left out 1 samples in fr, which is not one of en, de" in said
    assert "left out 1 samples in no language" in said
    with pytest.raises(RecipeError, match=r"language: fr; there are en, de"):
        rows(tmp_path, "en", "de", language="fr")
    with pytest.raises(DataError, match=r"0\.tar: member a\.json: it has no 'lang'; its fields are caption, url"):
        rows(tmp_path, language_field="lang")


def test_samples_without_a_picture_or_a_caption_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lame: list[Member] = [("a.txt", "no picture"), ("b.png", picture(1)), ("c.gif", b""), ("d.json", {"caption": "x"})]
    shard(tmp_path / "0.tar", [*lame, *sample("e", "whole")])
    assert [row.image for row in rows(tmp_path)] == ["0/e"]
    said = "".join(capsys.readouterr())
    assert "left out 3 samples without a picture" in said
    assert "left out 1 samples without a caption" in said


def test_names_may_have_folders_dots_and_large_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tarfile.TarInfo("./x.y/")
    folder.type = tarfile.DIRTYPE
    named: list[Member] = [
        ("./x.y/1.JPG", picture(1)),
        ("./x.y/1.TXT", "one"),
        ("./README", "no sample"),
        ("._1.jpg", b""),
    ]
    shard(tmp_path / "0.tar", [folder, *named])
    assert [(row.image, row.texts) for row in rows(tmp_path)] == [("0/x.y/1", [("en", "one")])]
    assert "left out" not in "".join(capsys.readouterr())


def test_shards_are_named_by_braces_wildcards_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        shard(tmp_path / "in [1]" / f"s-{number:03}.tar", sample("k", "text"))
    every = ["s-000/k", "s-001/k", "s-002/k"]

    def names(root: Path | None, shards: str | list[str]) -> list[str | None]:
        return [row.image for row in rows(root, shards=shards)]

    assert names(tmp_path, "in [1]/s-{000..002}.tar") == every
    assert names(tmp_path, "**/*.tar") == every
    assert names(tmp_path / "in [1]", "s-00?.tar") == every
    assert names(tmp_path / "in [1]", ["s-{001..002}.tar", "s-002.tar", "*.tar"]) == [*every[1:], every[0]]
    assert names(None, f"{tmp_path}/in [[]1]/*.tar") == every
    monkeypatch.chdir(tmp_path)
    assert names(None, "in [1]/s-{000..002}.tar") == every
    (tmp_path / "in [1]" / "a folder.tar").mkdir()
    assert names(Path("in [1]"), "*.tar") == every
    assert Path(str(rows(Path("in [1]"))[0].file)).is_absolute()
    with pytest.raises(DataError, match=r"s-003\.tar: this shard of .*\{000\.\.003\}\.tar is missing; fetch it"):
        names(tmp_path / "in [1]", "s-{000..003}.tar")
    with pytest.raises(DataError, match=r"nothing\*\.tar: no shard matches"):
        names(tmp_path, "nothing*.tar")
    with pytest.raises(RecipeError, match=r"shards: s-\{0\.\.1: Unbalanced braces"):
        names(tmp_path, "s-{0..1")
    with pytest.raises(RecipeError, match="missing environment variable"):
        names(tmp_path, "${NOT_THERE}/s.tar")
    shard(tmp_path / "other" / "s-000.tar", sample("k", "text"))
    with pytest.raises(DataError, match=r"other/s-000\.tar: .*in \[1\]/s-000\.tar has the same name"):
        names(tmp_path, "**/*.tar")


def header(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([("a.txt", "again")], r"member 'a\.txt' occurs twice"),
        ([("a.TXT", "again")], r"member 'a\.TXT' occurs twice"),
        ([("b.txt", "other"), ("a.png", b"")], r"member 'a\.png': key 'a' occurred before, with other keys between"),
        ([header("/etc/x.txt")], r"member '/etc/x\.txt': points outside"),
        ([header("x/../../y.txt")], r"member 'x/\.\./\.\./y\.txt': points outside"),
        ([header("x.jpg", tarfile.SYMTYPE, "/etc/passwd")], r"member 'x\.jpg': a link, a device"),
        ([header("x.jpg", tarfile.LNKTYPE, "a.jpg")], r"member 'x\.jpg': a link, a device"),
        ([header("x.jpg", tarfile.GNUTYPE_SPARSE)], r"member 'x\.jpg': a link, a device or sparse"),
        ([header("x.jpg", tarfile.CHRTYPE)], r"member 'x\.jpg': a link, a device"),
        ([("b.jpg", b"x"), ("b.txt", b"ab\xff")], r"member b\.txt: not UTF-8 \(byte 0xff at 2\)"),
        ([("b.jpg", b"x"), ("b.json", "{broken")], r"member b\.json: not JSON \(Expecting"),
        ([("b.jpg", b"x"), ("b.json", b"\xff")], r"member b\.json: not UTF-8"),
        ([("b.jpg", b"x"), ("b.json", "[1]")], r"member b\.json: a list, not an object"),
        ([("b.jpg", b"x"), ("b.json", {"caption": 3})], r"member b\.json: 'caption' is neither a text nor a list"),
    ],
)
def test_a_wrong_member_is_named(tmp_path: Path, wrong: list[Member], said: str) -> None:
    shard(tmp_path / "7.tar", [*sample("a", "text"), *wrong])
    with pytest.raises(DataError, match=r"^\S+/7\.tar: " + said) as caught:
        rows(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_json_without_the_field_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "7.tar", sample("a", "text"))
    with pytest.raises(DataError, match=r"7\.tar: member a\.json: it has no 'alt'"):
        rows(tmp_path, text="json:alt")
    with pytest.raises(RecipeError, match="text"):
        rows(tmp_path, text="caption")


def test_a_compressed_shard_is_to_be_decompressed(tmp_path: Path) -> None:
    for kind, magic in {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}.items():
        shard(tmp_path / "7.tar", sample("a", "text"), f"w:{kind}")
        with pytest.raises(DataError, match=rf"7\.tar: compressed by {magic}, .*decompress it"):
            rows(tmp_path)
    (tmp_path / "7.tar").rename(tmp_path / "7.tar.gz")
    with pytest.raises(DataError, match=r"7\.tar\.gz: shards are uncompressed tars"):
        rows(tmp_path, shards="*")


def test_a_shard_that_breaks_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path / "7.tar", [*sample("a", "one"), *sample("b", "two")])
    content, end = whole.read_bytes(), headers(whole)[-1].offset_data + 512
    for length in [0, 1, *range(511, end + 512, 256)]:
        whole.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"7\.tar: not a whole tar.*fetch it again"):
            rows(tmp_path)
    whole.write_bytes(content)
    whole.write_bytes(content[: headers(whole)[2].offset + 9])
    with pytest.raises(DataError, match=r"7\.tar: not a whole tar after member 'a\.json'"):
        rows(tmp_path)


def test_a_broken_header_is_not_the_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "7.tar", [*sample("a", "one"), *sample("b", "two")])
    content, rng = path.read_bytes(), np.random.default_rng(1)
    for place in [info.offset + inside for info in headers(path) for inside in (0, 124, 148)]:
        path.write_bytes(content[:place] + rng.bytes(64) + content[place + 64 :])
        with pytest.raises(DataError, match=r"7\.tar: not a whole tar"):
            rows(tmp_path)
    path.write_bytes(content + content)
    with pytest.raises(DataError, match="it ends early, or has other content, at byte"):
        rows(tmp_path)


def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path / "7.tar", sample("a", "one")).read_bytes()
    for size in (-(1 << 80), -1, 1 << 80):
        info = header("b.jpg")
        info.size = size
        (tmp_path / "7.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + whole)
        with pytest.raises(DataError, match=r"7\.tar: not a whole tar"):
            rows(tmp_path)
    (tmp_path / "7.tar").write_bytes(header("\udcff.jpg").tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + whole)
    with pytest.raises(DataError, match=r"7\.tar: not a whole tar \('utf-8' codec can't decode"):
        rows(tmp_path)


def test_img2dataset_s_shards_of_cc3m_are_read_as_declared(tmp_path: Path) -> None:
    shard(
        tmp_path / "cc3m" / "00000.tar", [*sample("000000000", "a very typical bus station"), *sample("000000002", "x")]
    )
    (tmp_path / "cc3m" / "00000.parquet").write_bytes(b"")
    found = list(webdataset.read(declaration("cc3m_webdataset"), Source(tmp_path)).rows)
    assert [(row.split, row.image, row.texts) for row in found] == [
        ("train", "00000/000000000", [("en", "a very typical bus station")]),
        ("train", "00000/000000002", [("en", "x")]),
    ]
