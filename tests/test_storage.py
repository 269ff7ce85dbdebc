"""Places in object storage: copies that are brought, kept up to date, sent, and removed where room is short."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mclip_kit import storage
from mclip_kit.errors import DataError
from mclip_kit.files import new_folder, write_text
from mclip_kit.storage import fetch, forget, named, place, with_urls


@pytest.fixture(autouse=True)
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty object storage in memory; copies are in a new folder."""
    monkeypatch.setenv(storage.ROOT, str(tmp_path / "copies"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    storage._seen.clear()
    yield system
    system.store.clear()


def test_a_url_is_the_path_of_a_copy_and_back() -> None:
    for url in ("s3://bucket/a/b.txt", "gs://bucket", "hf://datasets/me/mine/x.tar", "memory://b/ä ö/c"):
        assert named(place(url)) == url
        assert with_urls(f"{place(url)}: damaged") == f"{url}: damaged"
    assert named(place("s3://bucket/folder/")) == "s3://bucket/folder"
    for path in ("data/coco", "/data/coco", "C:/data"):
        assert place(path) == Path(path)
        assert named(place(path)) == path
    assert place("file:///data/coco") == Path("/data/coco")
    for wrong in ("s3://bucket/../other", "s3:///"):
        with pytest.raises(DataError, match="not a place in object storage"):
            place(wrong)


def test_a_folder_is_brought_and_kept_up_to_date(bucket: Any) -> None:
    bucket.pipe({"/b/data/one.txt": b"1", "/b/data/deep/two.txt": b"2", "/b/database": b"other"})
    folder = fetch(place("memory://b/data"))
    assert {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()} == {
        "one.txt": "1",
        "deep/two.txt": "2",
    }
    bucket.pipe_file("/b/data/one.txt", b"new")
    bucket.rm("/b/data/deep/two.txt")
    assert (fetch(folder) / "one.txt").read_text() == "1"  # a process works with one version
    fetch(folder, again=True)
    assert (folder / "one.txt").read_text() == "new"
    assert not (folder / "deep" / "two.txt").exists()


def test_large_files_are_brought_when_they_are_asked_for(bucket: Any) -> None:
    bucket.pipe({"/b/data/pictures.tar": b"pictures", "/b/data/rows": b"rows"})
    folder = fetch(place("memory://b/data"), but=["pictures.tar"])
    assert [path.name for path in folder.iterdir()] == ["rows"]
    assert fetch(folder / "pictures.tar").read_text() == "pictures"
    fetch(folder, but=["pictures.tar"], again=True)
    assert (folder / "pictures.tar").exists()


def test_what_is_written_whole_is_sent(bucket: Any) -> None:
    write_text(place("memory://b/runs/mine/recipe.yaml"), "a: 1\n")
    assert bucket.cat("/b/runs/mine/recipe.yaml") == b"a: 1\n"
    folder = place("memory://b/model")
    with new_folder(folder) as part:
        (part / "weights").write_text("w")
        assert bucket.find("/b/model") == []
    assert bucket.find("/b/model") == ["/b/model/weights"]
    assert fetch(folder) == folder
    with pytest.raises(ZeroDivisionError), new_folder(place("memory://b/other")) as part:
        _ = (part / "weights").write_text("w") / 0
    assert bucket.find("/b") == ["/b/model/weights", "/b/runs/mine/recipe.yaml"]


def test_a_folder_that_is_sent_again_has_nothing_of_the_old_one(bucket: Any) -> None:
    folder = place("memory://b/data")
    bucket.pipe({"/b/data/old": b"o", "/b/data/manifest.json": b"old"})
    folder.mkdir(parents=True)
    for name in ("rows", "manifest.json"):
        (folder / name).write_text(name)
        time.sleep(0.002)
    sent: list[str] = []
    put = bucket.put_file
    bucket.put_file = lambda file, remote: (sent.append(remote), sorted(bucket.find("/b")), put(file, remote))
    try:
        storage.send(folder)
    finally:
        del bucket.put_file
    assert sent == ["/b/data/rows", "/b/data/manifest.json"]
    assert bucket.find("/b") == ["/b/data/manifest.json", "/b/data/rows"]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    forget(folder)
    assert bucket.find("/b") == []


def test_the_copies_used_longest_ago_make_room(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe({f"/b/{name}": name.encode() * 1000 for name in "abcd"})
    monkeypatch.setenv(storage.SIZE, str(3e-6))
    for seconds, name in enumerate("abc"):
        copy = fetch(place(f"memory://b/{name}"))
        os.utime(copy, (1000 + seconds, copy.stat().st_mtime))
    fetch(place("memory://b/a"), again=True)
    fetch(place("memory://b/d"))
    there = {path.name for path in place("memory://b").iterdir()}
    assert there == {"a", "c", "d"}
    assert fetch(place("memory://b/b")).read_text() == "b" * 1000  # brought again
    bucket.pipe_file("/b/large", bytes(4000))
    with pytest.raises(DataError, match=r"do not fit into the 3e-06 GB .* set MCLIP_KIT_STORAGE_SIZE"):
        fetch(place("memory://b/large"))


def test_errors_name_the_url_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^memory://b/none: there is nothing at this place; check the name"):
        fetch(place("memory://b/none"))
    assert fetch(place("memory://b/none"), missing_ok=True) == place("memory://b/none")
    with pytest.raises(DataError, match=r"^nowhere://b/x: cannot be read \(Protocol not known: nowhere\)"):
        fetch(place("nowhere://b/x"))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    storage._filesystem.cache_clear()
    with pytest.raises(DataError, match=r"^s3://b/x: needs a package .*: pip install 'mclip-kit\[s3\]'"):
        fetch(place("s3://b/x"))
