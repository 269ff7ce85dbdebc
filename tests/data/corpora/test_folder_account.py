"""Whatever lies in a folder or a shard, pictures in are rows out and pictures that are counted as left out."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mclip_kit.data.corpora import Corpus, find_reader
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.images import SUFFIXES
from mclip_kit.errors import DataError

drawn = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
BUFFER = io.BytesIO()
Image.new("RGB", (2, 2), "red").save(BUFFER, "PNG")
CONTENTS = {
    ".png": BUFFER.getvalue(),
    ".JPG": BUFFER.getvalue(),
    ".jpg": b"",
    ".gif": b"<html>",
    ".heic": b"x",
    ".txt": b"red\ndark red",
    ".TXT": b"",
    ".de.txt": b"rot",
    ".fr.txt": b"rouge",
    ".png.txt": b"red",
    ".caption": b"red",
    ".json": b'{"caption": ["red", "dark"]}',
    ".en.json": b'{"shapes": []}',
    ".cls": b"1",
    ".npy": b"x",
}
PICTURES = (*SUFFIXES, ".heic")
STEMS = ["a", "b", "c.1", "c.2", "._a", "Thumbs"]
FOLDERS = ["", "train/", "test/", "cat/", "dog/", "train/cat/", ".hidden/"]
trees = st.sets(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from(STEMS), st.sampled_from(list(CONTENTS))), max_size=14
)
options = st.sampled_from(["auto", "captions", "classes", "gallery"])
Tree = set[tuple[str, str, str]]


def read(reader: str, root: Path, **chosen: Any) -> tuple[int, dict[str, Any]]:
    """The number of rows, and the account of the others."""
    tree = {
        "about": "x",
        "reader": reader,
        "languages": ["en", "de"],
        "licences": [],
        "obtain": "look",
        "options": chosen,
    }
    corpus, source = Corpus.model_validate(tree), Source(root)
    found = list(find_reader(corpus)(corpus, source).rows)
    assert len({row.image for row in found}) == len(found)
    return len(found), source.account.as_json()


def visible(tree: Tree) -> Tree:
    """Without hidden files and folders."""
    return {(folder, stem, ending) for folder, stem, ending in tree if "." not in (folder[:1], stem[:1])}


@drawn
@given(trees, options)
def test_pictures_of_a_folder_are_rows_or_counted(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree, kind: str
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folder, stem, ending in tree:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{stem}{ending}").write_bytes(CONTENTS[ending])
    there = [item for item in visible(tree) if item[2].lower() in PICTURES]
    try:
        kept, account = read("folder", root, kind=kind)
    except DataError:  # no pictures, or not as `kind` says: other tests read the messages
        return
    assert kept + sum(account["left_out"].values()) == len(there)
    unread = sum(account["ignored"].values()) + sum(account["left_out"].values())
    if kind == "gallery":  # then every file that is no row is counted, a hidden folder once
        assert unread >= len([folder for folder, _, _ in tree if folder != ".hidden/"]) - kept
    assert {*account["examples"]} == {*account["left_out"], *account["ignored"]}


@drawn
@given(trees, options, st.booleans())
def test_samples_of_a_shard_are_rows_or_counted(
    tmp_path_factory: pytest.TempPathFactory, tree: Tree, kind: str, hidden: bool
) -> None:
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("shard")
    members = sorted(f"{folder}{stem}{ending}" for folder, stem, ending in tree if ending not in (".TXT", ".JPG"))
    with tarfile.open(root / "0.tar", "w") as tar:
        for name in members:
            content = CONTENTS[
                next(ending for ending in sorted(CONTENTS, key=len, reverse=True) if name.endswith(ending))
            ]
            system = f"{os.path.dirname(name)}/._x.jpg".lstrip("/")
            for made in [system, name] if hidden else [name]:
                info = tarfile.TarInfo(made)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    kept, account = read("webdataset", root, shards="*.tar", kind=kind)
    shown = {item for item in visible(tree) if item[2] not in (".TXT", ".JPG")}
    pictures = {(folder, stem) for folder, stem, ending in shown if ending in SUFFIXES}
    samples = kept + sum(account["left_out"].values()) - account["left_out"].get("samples without a picture", 0)
    assert samples == len(pictures)
    whole = {(folder, stem) for folder, stem, ending in shown if ending == ".png"}
    assert kept <= len(whole)
    if kind == "gallery":
        assert kept >= len(whole - {(folder, stem) for folder, stem, ending in shown if ending == ".jpg"})
