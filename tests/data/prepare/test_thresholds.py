"""Sizes from which work is done in another way: with each lowered, `prepare` writes the same."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mclip_kit.data import columns, fairseq_io, sequences
from mclip_kit.data.corpora import Corpus, pieces, table, webdataset
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import caption_rows, fingerprints, picture_cells
from mclip_kit.data.prepare import columns as prepared_columns
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.storage import copies
from tests.data.prepare.test_prepare_workers import Declared, bitext, content, own, pairs, plain, shards
from tests.storage.buckets import bucket, new_machine

__all__ = ["bucket"]
Given = tuple[Corpus, Path | None]
Default = Callable[[Declared], tuple[Given, dict[str, bytes]]]


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Default:
    """A declaration and its source, and what is prepared of it by default; once for all tests."""

    @cache
    def of(declared: Declared) -> tuple[Given, dict[str, bytes]]:
        given = declared(tmp_path_factory.mktemp("from"))
        return given, prepared(given, tmp_path_factory.mktemp("out") / "data")

    return of


def prepared(given: Given, out: Path) -> dict[str, bytes]:
    """What two processes prepare."""
    corpus, root = given
    prepare(corpus, out, source=Source(root), workers=2)
    return content(out)


@pytest.mark.parametrize(
    ("declared", "module", "name", "value"),
    [
        (plain, pieces, "BYTES", 1),
        (plain, table, "FEW", 1),
        (plain, picture_cells, "LARGE", 1),
        (pairs, picture_cells, "LARGE", 1),
        (pairs, fingerprints, "LARGE", 1),
        (shards, webdataset, "SMALL", 1),
        (bitext, fairseq_io, "POINTERS", 2),
        (bitext, sequences, "RECENT", 2),
        (pairs, sequences, "RECENT", 2),
        (pairs, sequences.blocks_of, "__defaults__", (2,)),
        (bitext, sequences.blocks_of, "__defaults__", (2,)),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)).rpartition(".")[2],
)
def test_a_lowered_threshold_changes_no_byte(
    declared: Declared, module: Any, name: str, value: Any, default: Default, tmp_path: Path, monkeypatch: Any
) -> None:
    given, expected = default(declared)
    monkeypatch.setattr(module, name, value)
    assert prepared(given, tmp_path / "out") == expected


@pytest.mark.parametrize("kept", [1, 0])
def test_without_processes_for_many_files_the_same_is_found(
    kept: int, default: Default, tmp_path: Path, monkeypatch: Any
) -> None:
    """With and without the processes that look for pictures whose names are not their paths."""
    given, expected = default(pairs)
    monkeypatch.setattr(picture_cells, "LARGE", 1)
    monkeypatch.setattr(picture_cells, "MANY", kept)
    assert prepared(given, tmp_path / "out") == expected


@pytest.mark.parametrize("declared", [pairs, plain, shards])
def test_tables_in_small_blocks_have_the_same_rows(
    declared: Declared, default: Default, tmp_path: Path, monkeypatch: Any
) -> None:
    given, expected = default(declared)
    for module in (columns, caption_rows, prepared_columns):
        monkeypatch.setattr(module, "ROWS", 2)
    found = prepared(given, tmp_path / "out")
    assert found.keys() == expected.keys()
    tables = [name for name in found if name.endswith(".arrow")]
    assert len(tables) >= 2
    for name in found.keys() - {"manifest.json"}:  # it has the hashes of the tables
        if name in tables:
            old, new = (pa.ipc.open_file(pa.py_buffer(files[name])) for files in (expected, found))
            rows = new.read_all().to_pylist()
            assert rows == old.read_all().to_pylist()
            assert (old.num_record_batches, new.num_record_batches) == (1, -(-len(rows) // 2))
        else:
            assert found[name] == expected[name], name


def test_large_objects_are_brought_one_after_the_other(bucket: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "from").mkdir()
    shards(tmp_path / "from")
    bucket.pipe({f"/b/{path.name}": path.read_bytes() for path in (tmp_path / "from").iterdir()})
    found = []
    for number, large in enumerate((copies.LARGE, 1)):
        monkeypatch.setattr(copies, "LARGE", large)
        new_machine(tmp_path / f"copies{number}", monkeypatch)
        given = own(tmp_path, shards="memory://b/{0..4}.tar"), None
        found.append(prepared(given, tmp_path / str(number)))
    assert found[0] == found[1]
