"""Content keys: what is stored about files stays true."""

import os
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.errors import DataError
from mclip_kit.features import hashing


def test_a_file_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "files.sqlite"
    path.write_bytes(b"content")

    def fails(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        hashing.hash_files([path], memory)
    assert (hashing.hash_files([path], memory) == hashing.hash_bytes([b"content"])).all()


def test_a_copy_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.bmp", tmp_path / "files.sqlite"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, (1, 1))
        assert (hashing.hash_files([path], memory) == hashing.hash_bytes([content])).all()


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    memory = tmp_path / "files.sqlite"
    memory.write_bytes(b"no base at all, " * 100)
    with pytest.raises(DataError, match=r"files\.sqlite: file is not a database"):
        hashing.hash_files([tmp_path / "a.png"], memory)


def test_a_member_of_a_tar_has_the_key_of_its_content(tmp_path: Path) -> None:
    tar, memory = tmp_path / "0.tar", tmp_path / "files.sqlite"
    inside = [Path(f"{tar}@2+3"), Path(f"{tar}@5+3")]
    for content in (b"..onetwo..", b"..sixten.."):  # the second time it is another tar of the same size
        tar.write_bytes(content)
        os.utime(tar, (1, 1))
        wanted = hashing.hash_bytes([content[2:5], content[5:8]])
        assert (hashing.hash_files(inside, memory) == wanted).all()


def test_members_are_remembered_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar, memory = tmp_path / "0.tar", tmp_path / "files.sqlite"
    tar.write_bytes(b"..onetwo..")
    inside = [Path(f"{tar}@2+3"), Path(f"{tar}@5+3"), Path(f"{tar}@9+3")]  # the last one is not whole
    before = hashing.hash_files(inside, memory)
    assert len(np.unique(before, axis=0)) == 3
    read: list[Path] = []
    monkeypatch.setattr(hashing, "_digest", lambda path: read.append(path) or (b"0" * 16, False))
    assert (hashing.hash_files(inside[:2], memory) == before[:2]).all()
    assert read == []
    hashing.hash_files(inside, memory)
    assert read == inside[2:]
