"""A full, small or read-only disk is one error that names the path, in whichever library it comes up; real disks."""

import gc
import multiprocessing
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from mclip_kit.cli import cli
from mclip_kit.config.recipe import load
from mclip_kit.data.captions import uncaptioned
from mclip_kit.disk import PLACE, disk_errors
from mclip_kit.errors import DataError, DiskError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.files import check_writable, new_folder, write_text, write_whole
from mclip_kit.locks import hold
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import build_model
from mclip_kit.train.run import Run
from tests import tiny

NUMBERS = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)  # 1 MiB that cannot be compressed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def with_numpy(path: Path) -> None:
    np.save(path, NUMBERS)


def with_torch(path: Path) -> None:
    torch.save({"a": torch.from_numpy(NUMBERS)}, path)


def with_safetensors(path: Path) -> None:
    save_file({"a": torch.from_numpy(NUMBERS)}, path)


def with_arrow(path: Path) -> None:
    table = pa.table({"a": NUMBERS})
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


def with_parquet(path: Path) -> None:
    pq.write_table(pa.table({"a": NUMBERS}), path)


def with_faiss(path: Path) -> None:
    index = faiss.IndexFlatIP(64)
    index.add(NUMBERS.reshape(-1, 64).astype(np.float32))
    faiss.write_index(index, str(path))


def with_pil(path: Path) -> None:
    Image.fromarray(NUMBERS.reshape(1024, 1024)).save(path)


def with_pil_as_jpeg(path: Path) -> None:
    Image.fromarray(NUMBERS.reshape(1024, 1024)).save(path, "JPEG", quality=95)


def with_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE a (b BLOB)")
        base.execute("INSERT INTO a VALUES (?)", [NUMBERS.tobytes()])
        base.commit()


def with_python(path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("a" * (1 << 20))


WAYS = [value for name, value in globals().items() if name.startswith("with_")]


def file_name(way: Callable[[Path], None]) -> str:
    return "file.npy" if way is with_numpy else "file.png"  # NumPy and PIL look at it


def said_by(way: Callable[[Path], None], path: Path) -> str:
    """The error of a file that does not fit; its old content stays, and nothing else."""
    with pytest.raises(DiskError) as told, write_whole(path) as temporary:
        way(temporary)
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return str(told.value)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_full_disk_is_one_line_and_the_old_file_stays(way: Callable[[Path], None], disk: Path) -> None:
    path = disk / file_name(way)
    write_text(path, "old")
    said = said_by(way, path)
    assert said.startswith(f"{path}: cannot be written: ")
    assert "; free some space, then run the command again" in said
    gc.collect()  # a library may have the file still open
    with write_whole(disk / "after") as temporary:  # all of the room is free again
        temporary.write_bytes(bytes(200 << 10))


def test_a_limit_on_the_size_of_files_is_one_line_too(tmp_path: Path) -> None:
    """In a child, for a limit cannot be taken back by everyone."""

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        for way in WAYS:
            path = tmp_path / way.__name__ / file_name(way)
            write_text(path, "old")
            assert said_by(way, path).startswith(f"{path}: cannot be written: "), way
        write_text(tmp_path / "done", "")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "done").exists()


def test_a_folder_that_does_not_fit_is_named_by_its_own_name_and_leaves_nothing(disk: Path) -> None:
    def write() -> None:
        with new_folder(disk / "my.model") as part, write_whole(part / "inner" / "weights.pt") as temporary:
            with_torch(temporary)

    with pytest.raises(DiskError) as told:
        write()
    assert str(told.value).startswith(f"{disk / 'my.model'}: cannot be written: ")
    assert not list(disk.iterdir())


def test_errors_about_other_things_stay_what_they_are(tmp_path: Path) -> None:
    gone = tmp_path / "elsewhere" / "input"
    for wrong in (
        FileNotFoundError(2, "No such file or directory", str(gone)),
        OSError(5, "Input/output error", str(gone)),
        DataError("table.tsv: Input/output error"),
        DiskError(f"{tmp_path / 'other'}: cannot be written: No space left on device"),
        ValueError("a value"),
    ):
        with pytest.raises(type(wrong)) as told, disk_errors(tmp_path / "out" / "file"):
            raise wrong
        assert told.value is wrong


def test_a_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    def write() -> None:
        with write_whole(tmp_path / "run" / "last.pt") as temporary:
            os.rmdir(temporary.parent)
            temporary.write_bytes(b"a")

    with pytest.raises(DiskError, match=r"run/last.pt: cannot be written: No such file or directory; a file or folder"):
        write()


def test_what_cannot_be_written_is_known_before_the_work(disk: Path, tmp_path: Path) -> None:
    (disk / "run").mkdir()
    check_writable(disk / "run")
    check_writable(disk / "new" / "deeper" / "report.html")
    assert [path.name for path in disk.iterdir()] == ["run"]
    (disk / "ballast").write_bytes(bytes((256 << 10) - 8192))  # a page is the folder's, and a page the file's end
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "rest").write_bytes(bytes(free))
    with pytest.raises(DiskError, match=r"disk/run: cannot be written: No space left on device; free some space"):
        check_writable(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for path in (disk / "run", disk / "new" / "deeper" / "report.html"):
        with pytest.raises(DiskError) as told:
            check_writable(path)
        assert str(told.value) == f"{path}: cannot be written: Read-only file system; choose another place"
    with pytest.raises(DiskError, match="Read-only file system"), write_whole(disk / "run" / "a") as temporary:
        temporary.write_bytes(b"a")
    with pytest.raises(DiskError, match="disk/run: cannot be written: Read-only file system"), hold(disk, "run"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="file is a file; choose another place"):
        check_writable(tmp_path / "file" / "run")


def test_commands_say_at_once_that_they_cannot_write_there(
    disk: Path, squares: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a read-only disk; what a command would compute first is never begun."""
    model, recipe = tmp_path / "run" / "model", tiny.write_recipe(tiny.recipe(squares), tmp_path / "tiny.yaml")
    build_model(load(recipe)).save(model)
    (model.parent / "metrics.jsonl").touch()
    shutil.copy(recipe, model.parent / "recipe.yaml")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for module in (MultilingualClip, FrozenTowers, Run):
        monkeypatch.setattr(module, "__init__", None)  # none of them is made
    out = disk / "out"
    for words in (
        ["prepare", "--folder", colours],
        ["train", recipe],
        ["eval", model, "--data", squares],
        ["report", model.parent],
        ["import", "open-clip", "anything"],
        ["import", "e5"],
        ["export", "open-clip", model],
        ["export", "fairseq", model],
        ["export", "clip-retrieval", model, "--data", squares],
        ["embed", model, "--images", colours],
        ["index", tmp_path / "vectors"],
    ):
        done = CliRunner().invoke(cli, [*map(str, words), "--out", str(out)])
        assert done.output.splitlines()[-1] == f"Error: {out}: cannot be written: Read-only file system; {PLACE}", words
        assert done.exit_code == 2
    done = CliRunner().invoke(cli, ["demo", str(model), "--images", str(colours), "--work", str(out)])
    assert done.output == f"Error: {out}: cannot be written: Read-only file system; {PLACE}\n"


def test_a_cache_on_a_read_only_disk_is_read_and_new_hashes_of_files_are_not_kept(disk: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    captions = uncaptioned(tmp_path, [path.name for path in paths], ["test"] * 3, paths)
    logged: list[str] = []

    def keys(images: list[int]) -> list[list[int]]:
        towers = FrozenTowers(None, FeatureCache(disk / "features", log=logged.append))  # type: ignore[arg-type]
        return np.asarray(towers.picture_keys(captions, np.array(images))).tolist()

    before = keys([0, 1])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    logged.clear()
    assert keys([1, 0]) == before[::-1]
    assert logged == []
    assert keys([0, 1, 2])[:2] == before
    assert len(logged) == 2
    assert logged[-1].endswith(f"Read-only file system; {PLACE}; hashes of picture files are not kept")
