"""Hashes of picture files: what is kept about files stays true, and a file is read once by all processes together."""

import os
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data import images
from mclip_kit.data.content_keys import hash_bytes
from mclip_kit.features import file_hashes
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.file_hashes import hash_files, read_hashes
from mclip_kit.features.manage import list_tables
from mclip_kit.features.table import Table
from tests.features.tables import flip, together, whole_shards


def known_in(folder: Path) -> Table:
    """The table of known hashes of a cache, opened by a new process."""
    return FeatureCache(folder, log=lambda line: None).file_hashes


def files_in(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_a_file_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"content")

    def fails(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(images, "read_bytes", fails)
        hash_files([path], known_in(tmp_path / "cache"))
    assert (hash_files([path], known_in(tmp_path / "cache")) == hash_bytes([b"content"])).all()


def test_a_copy_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, (1, 1))
        assert (hash_files([path], known_in(tmp_path / "cache")) == hash_bytes([content])).all()


def test_a_damaged_hash_is_noticed_and_the_file_is_read_again(tmp_path: Path) -> None:
    paths = files_in(tmp_path, 3)
    wanted = read_hashes(paths)
    table = known_in(tmp_path / "cache")
    assert (hash_files(paths, table) == wanted).all()
    for name in ("values.bin", "keys.bin", "sums.bin", "shard.json"):
        (shard,) = whole_shards(table.folder)
        flip(shard / name)
        assert (hash_files(paths, known_in(tmp_path / "cache")) == wanted).all()


def test_a_member_of_a_tar_has_the_key_of_its_content(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    inside = [Path(f"{tar}@2+3"), Path(f"{tar}@5+3")]
    for content in (b"..onetwo..", b"..sixten.."):  # the second time it is another tar of the same size
        tar.write_bytes(content)
        os.utime(tar, (1, 1))
        wanted = hash_bytes([content[2:5], content[5:8]])
        assert (hash_files(inside, known_in(tmp_path / "cache")) == wanted).all()


def test_members_are_remembered_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar, cache = tmp_path / "0.tar", tmp_path / "cache"
    tar.write_bytes(b"..onetwo..")
    inside = [Path(f"{tar}@2+3"), Path(f"{tar}@5+3"), Path(f"{tar}@9+3")]  # the last one is not whole
    before = hash_files(inside, known_in(cache))
    assert len(np.unique(before, axis=0)) == 3
    read: list[Path] = []
    monkeypatch.setattr(file_hashes, "_digest", lambda path: read.append(path) or (b"0" * 16, False))
    assert (hash_files(inside[:2], known_in(cache)) == before[:2]).all()
    assert read == []
    hash_files(inside, known_in(cache))
    assert read == inside[2:]


def test_processes_share_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, log, digest = files_in(tmp_path, 60), tmp_path / "log", file_hashes._digest
    wanted = read_hashes(paths)

    def logged(path: Path) -> tuple[bytes, bool]:
        with open(log, "a", encoding="utf-8") as handle:
            handle.write(f"{path.name}\n")
        return digest(path)

    def task(rank: int) -> None:
        monkeypatch.setattr(file_hashes, "_digest", logged)
        assert (hash_files(paths, known_in(tmp_path / "cache"), rank, 4) == wanted).all()

    together(*(lambda rank=rank: task(rank) for rank in range(4)))
    assert sorted(log.read_text(encoding="utf-8").split()) == sorted(path.name for path in paths)


def test_the_hashes_are_a_table_that_ls_lists(tmp_path: Path) -> None:
    hash_files(files_in(tmp_path, 5), known_in(tmp_path / "cache"))
    (table,) = list_tables(tmp_path / "cache")
    assert (table.kind, table.source, table.rows, table.item_format.item_bytes) == ("files", "picture files", 5, 16)
