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
from mclip_kit.data.corpora import Corpus, Row, declaration, folder, webdataset
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.file_hashes import hash_files

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
    return accounted(root, *languages, **options)[0]


def accounted(root: Path | None, *languages: str, **options: Any) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and the account of what is not read."""
    source = Source(root)
    found = list(webdataset.read(corpus(*languages, **options), source).rows)
    return found, {"notes": []} | source.account.as_json()


def test_samples_become_rows_whose_pictures_lie_in_the_tar(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", [*sample("000000000", "a dog", 10), *sample("000000003", "a cat\non a mat", 90)])
    shard(tmp_path / "00001.tar", sample("000010000", "ein Hund, äöü", 200))
    (tmp_path / "00000.parquet").write_bytes(b"no shard")
    (tmp_path / "00000_stats.json").write_text("{}")
    found = rows(tmp_path, split="train", shards="*")
    assert [row.image for row in found] == ["00000/000000000", "00000/000000003", "00001/000010000"]
    assert [row.texts for row in found] == [
        [("en", "a dog")],
        [("en", "a cat"), ("en", "on a mat")],
        [("en", "ein Hund, äöü")],
    ]
    assert {row.split for row in found} == {"train"}
    for row, shade in zip(found, (10, 90, 200), strict=True):
        assert row.file
        assert images.container(Path(row.file)).is_absolute()
        assert images.read_bytes(Path(row.file)) == picture(shade, "JPEG")


def test_features_know_a_picture_in_a_tar_as_the_same_file_outside(tmp_path: Path) -> None:
    shard(tmp_path / "00000.tar", [*sample("a", "one", 10), *sample("b", "two", 90)])
    (tmp_path / "b.jpg").write_bytes(picture(90, "JPEG"))
    inside = [Path(str(row.file)) for row in rows(tmp_path)]
    first, second, outside = hash_files([*inside, tmp_path / "b.jpg"], FeatureCache(tmp_path / "cache").file_hashes)
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


def test_languages_are_the_corpus_s_or_the_field_s(tmp_path: Path) -> None:
    samples = [("a", "eins", "DE"), ("b", "one", "en"), ("c", "un", "fr"), ("d", "?", None)]
    shard(tmp_path / "0.tar", [part for key, text, code in samples for part in sample(key, text, LANGUAGE=code)])
    assert {text[0] for row in rows(tmp_path, "en", "de") for text in row.texts} == {"en"}
    assert {text[0] for row in rows(tmp_path, "en", "de", language="de") for text in row.texts} == {"de"}
    found, account = accounted(tmp_path, "en", "de", language_field="LANGUAGE")
    assert [row.texts for row in found] == [[("de", "eins")], [("en", "one")]]
    assert account["left_out"] == {
        "samples in fr, which is not one of en, de": 1,
        "samples in no language, which is not one of en, de": 1,
    }
    assert any(
        "field LANGUAGE of the json" in what and "language_field=LANGUAGE" in what
        for what in accounted(tmp_path)[1]["ignored"]
    )
    with pytest.raises(RecipeError, match=r"language: fr; there are en, de"):
        rows(tmp_path, "en", "de", language="fr")
    with pytest.raises(DataError, match=r"0\.tar: member a\.json: it has no 'lang'; its fields are caption, url"):
        rows(tmp_path, language_field="lang")


def test_what_is_no_whole_sample_is_counted(tmp_path: Path) -> None:
    lame: list[Member] = [("a.txt", "no picture"), ("b.png", picture(1)), ("c.gif", b""), ("c.txt", "none")]
    html: list[Member] = [("f.jpg", b"<html>not found</html>"), ("f.txt", "a page")]
    shard(tmp_path / "0.tar", [*lame, ("d.json", {"caption": "x"}), *sample("e", "whole"), *html])
    found, account = accounted(tmp_path)
    assert [row.image for row in found] == ["0/e"]
    assert account["left_out"] == {
        "samples without a picture": 2,
        f"samples without a caption or a class ({webdataset.ALONE})": 1,
        "pictures of 0 bytes": 1,
        "files with the ending of a picture that are none": 1,
    }
    assert account["examples"]["pictures of 0 bytes"] == f"{tmp_path}/0.tar: c"


def test_a_text_has_a_caption_in_each_line_as_in_a_folder(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a.jpg", picture(1)),
        ("a.txt", "one\r\ntwo\n\nlast"),
        ("b.jpg", picture(2)),
        ("b.txt", ""),
    ]
    shard(tmp_path / "0.tar", members)
    for name, content in members:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    tree = {"about": "x", "reader": "folder", "languages": ["en"], "licences": [], "obtain": "x"}
    beside = folder.read(Corpus.model_validate(tree), Source(tmp_path / "in")).rows
    expected = [[("en", text) for text in ("one", "two", "", "last")], [("en", "")]]
    assert [row.texts for row in rows(tmp_path)] == [row.texts for row in beside] == expected
    assert rows(tmp_path, lines=False)[0].texts == [("en", "one\r\ntwo\n\nlast")]


def test_languages_are_those_of_the_members_names(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a.jpg", picture(1)),
        ("a.en.txt", "red"),
        ("a.de.txt", "rot"),
        ("a.npy", b"x"),
        ("b.jpg", picture(2)),
        ("b.txt", "blue"),
        ("b.jpg.DE.txt", "blau"),
        ("b.caption", "azure"),
        ("b.npy", b"x"),
        ("c.jpg", picture(3)),
        ("c.json", {"caption": {"en": "green", "de": ["grün"]}, "width": 4}),
        ("d.jpg", picture(4)),
        ("d.json", {"captions": ["one", "two"]}),
    ]
    shard(tmp_path / "0.tar", members)
    assert webdataset.find_languages("*.tar", tmp_path) == ["en", "de"]
    found, account = accounted(tmp_path, "en", "de")
    assert [sorted(row.texts) for row in found] == [
        [("de", "rot"), ("en", "red")],
        [("de", "blau"), ("en", "blue")],
        [("de", "grün"), ("en", "green")],
        [("en", "one"), ("en", "two")],
    ]
    assert account["ignored"] == {"members .npy": 2, "members .caption": 1}
    assert account["examples"]["members .npy"] == f"{tmp_path}/0.tar: member a.npy"
    found, account = accounted(tmp_path, "en")
    assert [len(row.texts) for row in found] == [1, 1, 1, 2]
    assert account["ignored"]["captions in de, which is not one of en"] == 3


def test_a_field_id_of_a_json_is_no_caption(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [("0.jpg", picture(1)), ("0.json", {"id": "0001", "width": 4})])
    assert webdataset.find_languages("0.tar", tmp_path) == ["en"]
    found, account = accounted(tmp_path, shards="0.tar")
    assert not found
    assert account["left_out"] == {f"samples without a caption or a class ({webdataset.ALONE})": 1}


def test_classes_are_those_of_cls(tmp_path: Path) -> None:
    members: list[Member] = [
        part for n in (1, 0, 1) for part in ((f"{n}{n}x{n}.jpg", picture(n)), (f"{n}{n}x{n}.cls", str(n)))
    ]
    shard(tmp_path / "test" / "0.tar", [*members[:4], ("c.jpg", picture(3)), ("c.cls", "1\n"), ("c.txt", "a cat")])
    found, account = accounted(tmp_path, shards="**/*.tar")
    assert [(row.split, row.image, row.stratum, row.texts) for row in found] == [
        ("test", "0/11x1", "1", []),
        ("test", "0/00x0", "0", []),
        ("test", "0/c", "all", [("en", "a cat")]),
    ]
    assert account["ignored"] == {"members .cls": 1}
    (tmp_path / "classnames.txt").write_text("dog\ntabby cat\n")
    assert [row.stratum for row in rows(tmp_path, shards="**/*.tar", kind="classes")] == [
        "tabby cat",
        "dog",
        "tabby cat",
    ]
    assert [row.stratum for row in rows(tmp_path, shards="**/*.tar", classes="numbers")] == ["1", "0", "all"]
    (tmp_path / "classnames.txt").write_text("dog\n")
    with pytest.raises(DataError, match=r"member 11x1\.cls: class 1, but the list of class names has 1;"):
        rows(tmp_path, shards="**/*.tar")
    (tmp_path / "classnames.txt").write_text("crane\ncrane\n")
    assert [row.stratum for row in rows(tmp_path, shards="**/*.tar")] == ["1", "0", "all"]
    (tmp_path / "classnames.txt").unlink()
    shard(tmp_path / "test" / "0.tar", [*members[:2], ("__classes", "dog\ncat\n")])
    assert [row.stratum for row in rows(tmp_path, shards="**/*.tar")] == ["cat"]


def test_shards_of_several_splits_may_have_the_same_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        shard(tmp_path / split / "0.tar", sample("a", "text"))
    assert [(row.split, row.image) for row in rows(tmp_path, shards="**/*.tar")] == [
        ("train", "train/0/a"),
        ("valid", "val/0/a"),
    ]
    assert {row.split for row in rows(tmp_path, shards="**/*.tar", split="test")} == {"test"}
    for name in ("train-000", "train-001", "test-000"):
        shard(tmp_path / "named" / f"{name}.tar", sample("a", "text"))
    assert [row.split for row in rows(tmp_path / "named")] == ["test", "train", "train"]
    assert [row.split for row in rows(tmp_path / "named", shards="train-*.tar")] == ["", ""]


def test_a_sorted_tar_of_macos_and_keys_with_dots_are_read(tmp_path: Path) -> None:
    members: list[Member] = []
    for name in ("x/img.0001", "x/img.0002"):
        for ending, value in ((".jpg", picture(1)), (".txt", "text")):
            hidden = f"x/._{name.rpartition('/')[2]}{ending}"
            members += [(hidden, b"macOS"), (f"{name}{ending}", value)]
    shard(tmp_path / "0.tar", [*members, ("y/._a.jpg", b""), ("y/a.jpg", picture(2)), ("y/a.seg.png", picture(3))])
    found, account = accounted(tmp_path, kind="auto")
    assert [(row.image, row.texts) for row in found] == [
        ("0/x/img.0001", [("en", "text")]),
        ("0/x/img.0002", [("en", "text")]),
    ]
    assert account["ignored"] == {"hidden members and members of the system": 5}
    assert account["left_out"] == {f"samples without a caption or a class ({webdataset.ALONE})": 1}
    found, account = accounted(tmp_path, kind="gallery")
    assert found[2].image == "0/y/a"
    assert account["ignored"]["members .seg.png"] == 1


def test_names_may_have_folders_dots_and_large_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = tarfile.TarInfo("./x.y/")
    parent.type = tarfile.DIRTYPE
    named: list[Member] = [
        ("./x.y/1.JPG", picture(1)),
        ("./x.y/1.TXT", "one"),
        ("./README", "no sample"),
        ("._1.jpg", b""),
    ]
    shard(tmp_path / "0.tar", [parent, *named])
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
    assert names(tmp_path, "**/s-000.tar") == ["in [1]/s-000/k", "other/s-000/k"]
    shard(tmp_path / "more" / "other" / "s-000.tar", sample("k", "text"))
    with pytest.raises(DataError, match=r"/other/s-000\.tar: .*/other/s-000\.tar has the same name"):
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
        (
            [("b.txt", "other"), ("a.png", b"")],
            r"member 'a\.png': key 'a' occurred before, .* between; unpack it .*: tar --sort=name",
        ),
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


def test_a_folder_instead_of_shards_says_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder; name the shards in it: --webdataset '.*/\*\.tar'"):
        rows(None, shards=str(tmp_path))
