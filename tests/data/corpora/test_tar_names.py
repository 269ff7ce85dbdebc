"""Names in a tar without tarfile, and the languages that are known from them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.shard import class_names, read_kinds, read_shard
from mclip_kit.data.corpora.tar_names import plain_names
from mclip_kit.data.corpora.webdataset import find_languages

Members = list[tuple[str, bytes]]
PLAIN: Members = [("0.jpg", b"x" * 700), ("0.txt", b"a dog"), ("1.jpg", b""), ("1.txt", b"y" * 512), ("2.jpg", b"z")]


def packed(path: Path, members: Members, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_those_of_tarfile(tmp_path: Path, form: int) -> None:
    tar = packed(tmp_path / "a.tar", [*PLAIN, ("folder/é.json", b"{}")], form)
    with tarfile.open(tar) as opened:
        names = tuple(opened.getnames())
    assert plain_names(tar) == (None if form == tarfile.PAX_FORMAT else names)  # that has a header of its own for é
    assert plain_names(packed(tmp_path / "b.tar", PLAIN, form)) == tuple(name for name, _ in PLAIN)


def with_folder(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("folder/"))
        folder = tarfile.TarInfo("other")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: packed(path, []),
        lambda path: packed(path, [("x" * 120 + ".jpg", b"x")]),
        lambda path: packed(path, [("f/" * 60 + "x.jpg", b"x")], tarfile.USTAR_FORMAT),
        lambda path: path.write_bytes(packed(path, PLAIN).read_bytes()[:2000]),
        lambda path: path.write_bytes(packed(path, PLAIN).read_bytes()[:512]),
        lambda path: path.write_bytes(b"no tar" * 200),
        lambda path: path.write_bytes(b""),
        with_folder,
    ],
    ids=["empty", "long", "prefix", "cut", "header", "text", "nothing", "folder"],
)
def test_what_is_not_plain_is_left_to_tarfile(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path / "a.tar")
    assert plain_names(tmp_path / "a.tar") is None
    assert plain_names(tmp_path / "none.tar") is None


@pytest.mark.parametrize(
    ("members", "languages"),
    [
        (PLAIN, ["en"]),
        ([*PLAIN, ("3.jpg", b"x"), ("3.de.txt", b"ein Hund")], ["en", "de"]),
        ([("0.jpg", b"x"), ("0.json", json.dumps({"caption": {"de": "ein Hund"}}).encode()), *PLAIN[2:]], ["en", "de"]),
        ([("0.jpg", b"x"), ("0.json", json.dumps({"caption": {"de": "ein Hund"}}).encode())], ["de"]),
        ([*PLAIN, ("img.0001.jpg", b"x"), ("img.0001.fr.txt", b"un chien")], ["en", "fr"]),
        ([("./0.jpg", b"x"), ("./.hidden.txt", b"x"), ("classnames.txt", b"cat")], ["en"]),
    ],
)
def test_languages_are_those_of_all_samples(tmp_path: Path, members: Members, languages: list[str]) -> None:
    tar = packed(tmp_path / "a.tar", members)
    assert find_languages(str(tar), None) == languages
    every = {file.language for sample in read_shard(tar, Account()) for file in sample.captions()}
    assert {file.language for sample in read_kinds(tar) for file in sample.captions()} == every


def test_class_names_in_a_shard_are_found(tmp_path: Path) -> None:
    assert class_names([packed(tmp_path / "a.tar", PLAIN)]) == []
    assert class_names([packed(tmp_path / "a.tar", [*PLAIN, ("classnames.txt", b"cat\ndog")])]) == ["cat", "dog"]
