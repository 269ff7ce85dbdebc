"""Keys: what is remembered of files is true of them."""

import os
from pathlib import Path

import pytest

from mclip_kit.errors import DataError
from mclip_kit.features import keys


def test_a_file_that_could_not_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = tmp_path / "a.png", tmp_path / "files.sqlite"
    path.write_bytes(b"content")

    def fails(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        keys.of_files([path], memory)
    assert (keys.of_files([path], memory) == keys.of_bytes([b"content"])).all()


def test_a_copy_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path, memory = tmp_path / "a.bmp", tmp_path / "files.sqlite"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, (1, 1))
        assert (keys.of_files([path], memory) == keys.of_bytes([content])).all()


def test_a_damaged_memory_is_named(tmp_path: Path) -> None:
    memory = tmp_path / "files.sqlite"
    memory.write_bytes(b"no base at all, " * 100)
    with pytest.raises(DataError, match=r"files\.sqlite: file is not a database"):
        keys.of_files([tmp_path / "a.png"], memory)
