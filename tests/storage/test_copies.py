"""Copies of objects: brought, kept up to date, sent, and removed where room is short."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mclip_kit import storage, urls
from mclip_kit.errors import DataError, StorageError
from mclip_kit.files import check_new, check_writable, new_folder, write_text
from mclip_kit.storage import copies, fetch, forget, mark, objects, place, send, send_rest, sending
from mclip_kit.urls import named, with_urls
from tests.storage.buckets import bucket, contents, new_machine

__all__ = ["bucket"]


def files(folder: Path) -> dict[str, str]:
    """Path below a folder -> text, of files that are not hidden."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


@pytest.mark.usefixtures("bucket")
def test_a_url_is_the_path_of_a_copy_and_back() -> None:
    for url in ("s3://bucket/a/b.txt", "gs://bucket", "hf://datasets/me/mine/x.tar", "memory://b/ä ö/c"):
        assert named(place(url)) == url
        assert with_urls(f"{place(url)}: damaged") == f"{url}: damaged"
    assert str(DataError(f"{place('s3://b/x')}: damaged")) == "s3://b/x: damaged"
    assert named(place("s3://bucket/folder/")) == "s3://bucket/folder"
    for path in ("data/coco", "/data/coco", "C:/data", "hf:org/name"):
        assert place(path) == Path(path)
        assert named(place(path)) == path
    assert place("file:///data/coco") == Path("/data/coco")
    for wrong in ("s3://bucket/../other", "s3:///", "s3://b//x", "s3://b/.x/y", "s3://b/x//", "s3://b/./x"):
        with pytest.raises(DataError, match="not a place in object storage"):
            place(wrong)


def test_copies_are_known_where_a_link_leads_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    new_machine(tmp_path / "link", monkeypatch)
    assert place("s3://b/x") == tmp_path / "real" / "s3" / "b" / "x"
    assert urls.is_copy(place("s3://b/x").resolve())


def test_a_folder_is_brought_and_kept_up_to_date(bucket: Any) -> None:
    bucket.pipe({"/b/data/one.txt": b"1", "/b/data/deep/two.txt": b"2", "/b/database": b"other", "/b/data/.own": b"3"})
    folder = fetch(place("memory://b/data"))
    assert files(folder) == {"one.txt": "1", "deep/two.txt": "2"}
    bucket.pipe_file("/b/data/one.txt", b"new")
    bucket.rm("/b/data/deep/two.txt")
    assert files(fetch(folder))["one.txt"] == "1"  # a process works with one version
    fetch(folder, again=True)
    assert files(folder) == {"one.txt": "new"}
    bucket.rm("/b/data/one.txt")
    assert not fetch(folder / "one.txt").exists()  # by its own path, too


def test_files_are_brought_by_the_patterns_of_their_names(bucket: Any) -> None:
    bucket.pipe({"/b/data/pictures.tar": b"pictures", "/b/data/rows": b"rows", "/b/data/deep/log.json": b"{}"})
    folder = fetch(place("memory://b/data"), ("*.json", "rows"))
    assert files(folder) == {"rows": "rows", "deep/log.json": "{}"}
    assert fetch(folder / "pictures.tar").read_text() == "pictures"
    fetch(folder, ("rows",), again=True)
    assert (folder / "pictures.tar").exists()
    assert storage.names(folder) == ["deep", "pictures.tar", "rows"]
    assert storage.listing(folder) == {"pictures.tar": 8, "rows": 4, "deep/log.json": 2}
    assert storage.wildcards(place("memory://b/*/*.tar")) == [folder / "pictures.tar"]
    assert storage.names(place("memory://b/none")) == []


def test_nothing_at_a_place_is_nothing_at_the_path(bucket: Any) -> None:
    path = place("memory://b/none")
    assert not fetch(path).exists()
    assert not storage.exists(path)
    bucket.pipe_file("/b/none", b"there")
    assert fetch(path).read_text() == "there"  # that it was missing is not kept


def test_objects_whose_names_no_file_can_have_are_refused(bucket: Any) -> None:
    for wrong in ("/b/data/../../../etc/x", "/b/data//x", "/b/data/./x"):
        bucket.store.clear()
        bucket.store["/b/data/fine"] = bucket.store[wrong] = _object(bucket, wrong)
        with pytest.raises(StorageError, match=r"^memory://b/data: the object '/b/data/.* rename it there"):
            fetch(place("memory://b/data"))
    bucket.store.clear()
    bucket.store["/b/data/x"] = bucket.store["/b/data/x/y"] = _object(bucket, "/b/data/x")
    with pytest.raises(StorageError, match=r"memory://b/data/x: an object and a folder have this name"):
        fetch(place("memory://b/data"))
    bucket.store.clear()
    bucket.store["/b/data/sub/"] = _object(bucket, "/b/data/sub/", b"")  # as web pages of storage make folders
    bucket.store["/b/data/x"] = _object(bucket, "/b/data/x")
    assert files(fetch(place("memory://b/data"))) == {"x": "1"}


def _object(system: Any, name: str, content: bytes = b"1") -> Any:
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(system, name, content)


def test_what_is_written_whole_is_sent(bucket: Any) -> None:
    write_text(place("memory://b/runs/mine/recipe.yaml"), f"data: {place('memory://b/data')}\n")
    assert bucket.cat("/b/runs/mine/recipe.yaml") == b"data: memory://b/data\n"
    folder = place("memory://b/model")
    with new_folder(folder) as part:
        (part / "weights").write_text("w")
        assert bucket.find("/b/model") == []
    assert bucket.find("/b/model") == ["/b/model/weights"]
    with pytest.raises(ZeroDivisionError), new_folder(place("memory://b/other")) as part:
        _ = (part / "weights").write_text("w") / 0
    assert bucket.find("/b") == ["/b/model/weights", "/b/runs/mine/recipe.yaml"]
    with pytest.raises(Exception, match="memory://b/model: exists already"):
        check_new(folder)


def test_a_folder_is_sent_in_the_order_in_which_it_was_written(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sent = place("memory://b/model"), list[str]()
    put = bucket.put_file
    monkeypatch.setattr(bucket, "put_file", lambda file, remote: (sent.append(remote), put(file, remote)))
    with sending.sent_together(folder):
        write_text(folder / "z" / "weights", "w")
        time.sleep(0.002)
        write_text(folder / "config.json", "{}")
        assert not sent
    assert sent == ["/b/model/z/weights", "/b/model/config.json"]


def test_what_is_removed_or_renamed_here_is_so_there(bucket: Any) -> None:
    folder = place("memory://b/runs")
    for name in ("last.pt", "best.pt"):
        write_text(folder / name, name)
    (folder / "last.pt").rename(folder / "last-1.pt")
    storage.copy_object(folder / "last.pt", folder / "last-1.pt")
    assert contents(bucket, "/b/runs") == {"last.pt": b"last.pt", "last-1.pt": b"last.pt", "best.pt": b"best.pt"}
    bucket.rm("/b/runs/last.pt")
    (folder / "last.pt").write_text("last.pt")
    (folder / "last.pt").rename(folder / "last-2.pt")
    storage.copy_object(folder / "last.pt", folder / "last-2.pt")  # it is gone there: what is here is sent
    assert bucket.cat("/b/runs/last-2.pt") == b"last.pt"
    bucket.mv("/b/runs/last-2.pt", "/b/runs/last.pt")
    (folder / "best.pt").unlink()
    forget(folder / "best.pt")
    assert sorted(contents(bucket, "/b/runs")) == ["last-1.pt", "last.pt"]
    forget(folder)
    assert bucket.find("/b") == []


def _offline(*_: Any, **__: Any) -> None:
    raise OSError("the cable is cut")


def test_what_could_not_be_sent_is_kept_and_sent_later(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place("memory://b/run/last.pt")
    write_text(path, "1")
    with monkeypatch.context() as cut:
        cut.setattr(bucket, "put_file", _offline)
        expected = (
            r"^memory://b/run/last.pt: cannot be written \(the cable is cut\); check its name, your access to it and "
            r"the connection; it is kept on this machine; send it again with: mclip-kit data send memory://b/run/last.pt$"
        )
        with pytest.raises(StorageError, match=expected):
            write_text(path, "22")
        copies._seen.clear()
        with pytest.raises(StorageError, match="the cable is cut"):
            fetch(path.parent)
    assert bucket.cat("/b/run/last.pt") == b"1"
    assert fetch(path.parent, ("nothing",)) / "last.pt" == path  # reading from there sends it
    assert (path.read_text(), bucket.cat("/b/run/last.pt")) == ("22", b"22")
    with monkeypatch.context() as cut:
        cut.setattr(bucket, "put_file", _offline)
        with pytest.raises(StorageError):
            write_text(path, "333")
    assert (send_rest(place("memory://b/run")), send_rest(place("memory://b/run"))) == (1, 0)
    assert bucket.cat("/b/run/last.pt") == b"333"
    sent = list[str]()
    put = bucket.put_file
    for again in (send_rest, lambda folder: fetch(folder, again=True)):
        for name in ("z", "manifest.json"):  # the order in which they were written is that in which they are sent
            time.sleep(0.002)
            (path.parent / name).write_text(name)
            mark(path.parent / name)
        with monkeypatch.context() as counted:
            counted.setattr(bucket, "put_file", lambda file, remote: (sent.append(remote), put(file, remote)))
            again(path.parent)
    assert sent == ["/b/run/z", "/b/run/manifest.json"] * 2


def test_what_another_machine_has_written_since_is_not_replaced(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place("memory://b/run/last.pt")
    write_text(path, "1")
    mark(path)
    path.write_text("1 and more")  # a log that grows, of a run that is killed
    bucket.pipe_file("/b/run/last.pt", b"2 by another")
    copies._seen.clear()
    assert fetch(path).read_text() == "2 by another"
    assert "memory://b/run/last.pt: was changed elsewhere since" in capsys.readouterr().out
    mark(path)
    path.unlink()
    assert fetch(path, again=True).read_text() == "2 by another"


def test_a_file_that_grows_is_not_replaced_by_what_was_sent(bucket: Any) -> None:
    path = place("memory://b/run/metrics.jsonl")
    write_text(path, "1\n")
    with path.open("a") as log:
        for row in range(2, 5):
            log.write(f"{row}\n")
            log.flush()
            mark(path)
            fetch(path, again=True)  # as a report does meanwhile
            assert path.read_text() == bucket.cat("/b/run/metrics.jsonl").decode()
    assert path.read_text() == "1\n2\n3\n4\n"


def test_the_copies_used_longest_ago_make_room(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe({f"/b/{name}": name.encode() * 1000 for name in "abcd"})
    monkeypatch.setenv(copies.SIZE, str(4e-6))
    write_text(place("memory://b/own"), "o" * 1000)
    mark(place("memory://b/own"))  # changed here: it is not removed
    for seconds, name in enumerate(("own", "a", "b", "c")):
        copy = fetch(place(f"memory://b/{name}")) if name != "own" else place("memory://b/own")
        os.utime(copy, (1000 + seconds, copy.stat().st_mtime))
    fetch(place("memory://b/a"), again=True)
    fetch(place("memory://b/d"))
    assert {path.name for path in place("memory://b").iterdir()} == {"own", "a", "c", "d"}
    assert fetch(place("memory://b/b")).read_text() == "b" * 1000  # brought again
    bucket.pipe_file("/b/large", bytes(5000))
    with pytest.raises(StorageError, match=r"do not fit into the 4e-06 GB .* set MCLIP_KIT_STORAGE_SIZE"):
        fetch(place("memory://b/large"))
    monkeypatch.setenv(copies.SIZE, "much")
    with pytest.raises(DataError, match="MCLIP_KIT_STORAGE_SIZE=much: not a number of GB"):
        fetch(place("memory://b/large"))


def test_threads_that_want_the_same_bring_it_once(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe_file("/b/x", b"1")
    read = list[str]()
    get = bucket.get_file
    monkeypatch.setattr(bucket, "get_file", lambda name, *rest, **more: (read.append(name), get(name, *rest, **more)))
    found = list[str]()
    threads = [threading.Thread(target=lambda: found.append(fetch(place("memory://b/x")).read_text())) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, read) == (["1"] * 4, ["/b/x"])


def test_a_download_that_breaks_leaves_the_old_copy(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe_file("/b/x", b"old")
    path = fetch(place("memory://b/x"))
    bucket.pipe_file("/b/x", b"newer")
    monkeypatch.setattr(bucket, "get_file", lambda name, to, callback: (Path(to).write_bytes(b"ne"), _offline()))
    with pytest.raises(StorageError, match=r"^memory://b/x: cannot be read \(the cable is cut\)"):
        fetch(path, again=True)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("x", "old")]


def test_errors_name_the_url_and_what_to_do(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"^ftp://b/x: cannot be read \(ftp needs more than a URL; use s3://, .*\)"):
        fetch(place("ftp://b/x"))
    with pytest.raises(StorageError, match=r"^nowhere://b/x: cannot be read \(Protocol not known: nowhere\)"):
        fetch(place("nowhere://b/x"))
    monkeypatch.setattr(bucket, "find", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Forbidden")))
    with pytest.raises(StorageError, match=r"^memory://b/x: cannot be read \(access denied: Forbidden\); check its"):
        fetch(place("memory://b/x"))
    monkeypatch.setattr(bucket, "pipe_file", _offline)
    with pytest.raises(StorageError, match=r"^memory://b/x: cannot be written \(the cable is cut\)"):
        check_writable(place("memory://b/x"))
    monkeypatch.setattr(bucket, "find", lambda *_, **__: {}["no object"])
    with pytest.raises(KeyError):  # a mistake in a program is no user's
        fetch(place("memory://b/x"))
    for scheme, module, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")):
        monkeypatch.setitem(sys.modules, module, None)
        objects._system.cache_clear()
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        with pytest.raises(StorageError, match=rf"^{scheme}://b/x: needs .* python -m pip install -e '\.\[{extra}\]'"):
            fetch(place(f"{scheme}://b/x"))


def test_a_place_that_can_be_written_is_left_as_it_was(bucket: Any) -> None:
    check_writable(place("memory://b/run"))
    assert bucket.find("/") == []


def test_paths_that_are_no_copies_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert not storage.exists(path)
    path.write_text("1")
    assert fetch(path) == path
    send(path)
    mark(path)
    forget(path)
    assert (send_rest(path), path.read_text(), storage.exists(path)) == (0, "1", True)
    assert objects.names(tmp_path) == ["x"]


def test_an_object_that_goes_while_its_folder_is_brought_is_done_without(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.pipe({"/b/table/index-old.bin": b"old", "/b/table/shard.json": b"{}"})
    get, removing = type(bucket).get_file, ["/b/table/index-old.bin"]

    def removed_first(self: Any, remote: str, local: str, **options: Any) -> None:
        while removing and remote.endswith("index-old.bin"):
            bucket.rm_file(removing.pop())
            bucket.pipe_file("/b/table/index-new.bin", b"new")
        get(self, remote, local, **options)

    monkeypatch.setattr(type(bucket), "get_file", removed_first)
    folder = fetch(place("memory://b/table"))
    assert sorted(path.name for path in folder.iterdir()) == ["index-new.bin", "shard.json"]
    monkeypatch.setattr(bucket, "find", lambda *_, **__: {"/b/x": {"name": "/b/x", "size": 1}})
    with pytest.raises(StorageError, match=r"^memory://b/x: was removed while it was read; run again$"):
        fetch(place("memory://b/x"))


def test_a_folder_of_copies_that_is_removed_meanwhile_is_made_again(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.pipe_file("/b/table/shard.json", b"{}")
    left = [1]

    def without_folder(self: Any, remote: str, local: str, **_: Any) -> None:
        if left[0]:
            left[0] -= 1
            shutil.rmtree(Path(local).parent)
        with open(local, "wb") as file:  # as s3fs does, which makes no folder
            file.write(self.cat_file(remote))

    monkeypatch.setattr(type(bucket), "get_file", without_folder)
    assert files(fetch(place("memory://b/table"))) == {"shard.json": "{}"}
    left[0] = 99
    bucket.pipe_file("/b/table/shard.json", b"[1]")
    said = r"^memory://b/table: was removed on this machine while a copy was brought; run again$"
    with pytest.raises(StorageError, match=said):
        fetch(place("memory://b/table"), again=True)


def test_copies_are_looked_at_again_only_when_much_was_brought(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe({f"/b/{number}": bytes(10) for number in range(100)})
    monkeypatch.setenv(copies.SIZE, str(6400e-9))  # 100 bytes may be brought without a look
    looks, records = list[Path](), copies.records
    monkeypatch.setattr(copies, "records", lambda path: (looks.append(path), records(path))[1])
    for number in range(100):
        fetch(place(f"memory://b/{number}"))
    assert looks.count(urls.root()) == 10  # one for each 11 copies
    monkeypatch.setenv(copies.SIZE, str(500e-9))  # another limit is looked at, and kept to
    bucket.pipe({f"/b/{number}": bytes(10) for number in range(100, 120)})
    for number in range(100, 120):
        fetch(place(f"memory://b/{number}"))
        assert len([*place("memory://b").iterdir()]) <= 50
