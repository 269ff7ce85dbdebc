"""What several processes prepare is what one prepares: every byte, every count and every error."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_kit.config.yaml import overridden, parse
from mclip_kit.data.corpora import Corpus, lines, pieces, table, webdataset
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import adhoc, binarize, fingerprints, picture_cells, reading, splits, writer
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.engine.base import map_ahead
from mclip_kit.engine.local import Processes
from mclip_kit.errors import DataError

Declared = Callable[[Path], tuple[Corpus, Path | None]]
"""Writes files into a folder; their declaration and their source."""
ROWS = 120


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is too small for processes."""
    for module, sizes in {
        lines: {"FEW": 1, "BLOCK": 16},
        table: {"FEW": 1, "BLOCK": 16},
        pieces: {"BYTES": 600},
        webdataset: {"SMALL": 0},
        reading: {"BLOCK": 8},
        binarize: {"LARGE": 0, "BLOCK": 32},
        fingerprints: {"LARGE": 0, "PICTURES": 8},
        picture_cells: {"LARGE": 0, "PART": 100},
        writer: {"EXACT": 40, "BLOCK": 24},
        splits: {"EXACT": 40},
    }.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


def text(number: int, language: str) -> str:
    """A text; some are equal, spaced, have control characters or are empty."""
    words = {"en": "a red square and {} dogs", "de": "ein rotes Quadrat und {} Hunde"}[language].format(number % 100)
    return {7: f"  {words}  ", 11: f"{words}\u200b", 17: " "}.get(number % 30, words)


def own(path: Path, *rules: str, **given: Any) -> Corpus:
    """The declaration of a user's own files."""
    arguments: dict[str, Any] = {"files": [], "table": None, "shards": None, "folder": None, "languages": []} | given
    name, tree = adhoc.declare(**arguments)
    return parse(overridden(tree, ["cleaning.duplicates=true", "vocabulary.pieces=60", *rules]), Corpus, name)


def bitext(folder: Path) -> tuple[Corpus, Path | None]:
    for language in ("en", "de"):
        content = "".join(text(number, language) + "\n" for number in range(ROWS))
        (folder / f"t.{language}").write_text(content, encoding="utf-8")
    files = [f"{language}={folder / f't.{language}'}" for language in ("en", "de")]
    return own(folder, "cleaning.ratio=3", files=files), None


def pairs(folder: Path, wrong: int = -1) -> tuple[Corpus, Path | None]:
    rows: list[dict[str, Any]] = []
    for number in range(ROWS):
        row = {"image": f"p/{number // 2}.jpg", "caption": text(number, "en"), "de": text(number, "de")}
        rows.append(row | ({"licence": "cc"} if number == 90 else {}) | ({"caption": 5} if number == wrong else {}))
        if number % 40 == 3:
            rows[-1] = {"image": "p/none.jpg", "caption": None}
    (folder / "p").mkdir(exist_ok=True)
    for number in range(9):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / "p" / f"{number}.jpg")
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return own(folder, table=folder / "t.jsonl"), folder


def plain(folder: Path, wrong: bytes = b"") -> tuple[Corpus, Path | None]:
    rows = [f"p/{number % 50}.jpg\t{text(number, 'en')}\n".encode() for number in range(3 * ROWS)]
    if wrong:
        rows[250] = wrong  # below the lines whose quotes are looked at
    (folder / "t.tsv").write_bytes(b"image\tcaption\n" + b"".join(rows))
    return own(folder, table=folder / "t.tsv"), folder


def shards(folder: Path, cut: bool = False) -> tuple[Corpus, Path | None]:
    drawn = io.BytesIO()
    Image.new("RGB", (2, 2)).save(drawn, "PNG")
    for shard in range(5):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(12):
                members = {"txt": text(12 * shard + number, "en").encode(), "png": drawn.getvalue() + bytes([number])}
                if number == 5:
                    members = {"txt": b"no picture"} if shard % 2 else {"png": drawn.getvalue(), "mp3": b"sound"}
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{shard}{number:03}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    if cut:
        whole = (folder / "3.tar").read_bytes()
        (folder / "3.tar").write_bytes(whole[:9000])
    return own(folder, shards=str(folder / "{0..4}.tar")), None


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("declared", [bitext, pairs, plain, shards])
def test_every_byte_is_that_of_one_process(tmp_path: Path, declared: Declared, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from").mkdir()
    corpus, root = declared(tmp_path / "from")
    used: list[tuple[int, Any]] = []
    run = Processes.map
    monkeypatch.setattr(
        Processes, "map", lambda engine, make, *given: used.append((engine.workers, make)) or run(engine, make, *given)
    )
    for workers in (1, 2):
        prepare(corpus, tmp_path / str(workers), source=Source(root), workers=workers)
    assert (2, reading.PartCleaner) in used
    assert {workers for workers, _ in used} == {2}
    one, two = content(tmp_path / "1"), content(tmp_path / "2")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    counts = json.loads(one["manifest.json"])["counts"]
    assert counts["rows"]["left_out"] or counts["left_out"]
    assert counts["rows"]["kept"] > ROWS // 4


@pytest.mark.parametrize(
    "declared",
    [
        partial(pairs, wrong=75),
        partial(plain, wrong=b"a.jpg\t\xff\n"),
        partial(plain, wrong=b"a.jpg\n"),
        partial(shards, cut=True),
    ],
    ids=["pairs", "bytes", "cells", "shards"],
)
def test_an_error_in_a_worker_is_the_line_of_one_process(tmp_path: Path, declared: Declared) -> None:
    (tmp_path / "from").mkdir()
    corpus, root = declared(tmp_path / "from")
    said = []
    for workers in (1, 2):
        with pytest.raises(DataError) as raised:
            prepare(corpus, tmp_path / "out", source=Source(root), workers=workers)
        said.append(str(raised.value))
        assert [path.name for path in tmp_path.iterdir() if path.name != ".out.lock"] == ["from"]
    assert said[0] == said[1]
    assert "line 76" in said[0] or "line 252" in said[0] or "3.tar: not a whole tar" in said[0]


def doubled(by: int, number: int) -> int:
    if number == 99:
        os._exit(1)
    return by * number


def test_results_come_in_order_and_only_a_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number
        raise DataError("the source breaks off")

    found = []

    def collect() -> None:
        with Processes(2).map(partial, doubled, 3) as work:
            for result in work(items()):
                assert len(taken) - len(found) <= 5
                found.append(result)

    with pytest.raises(DataError, match="breaks off"):
        collect()
    assert found == [3 * number for number in range(20)]


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(DataError, match="a worker process was killed"), Processes(2).map(partial, doubled, 3) as work:
        list(work([1, 99, 2]))


def test_nothing_is_computed_for_items_after_one_that_failed() -> None:
    from concurrent.futures import ThreadPoolExecutor

    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return 1 // (3 - number)

    with pytest.raises(ZeroDivisionError), ThreadPoolExecutor(1) as pool:
        list(map_ahead(partial(pool.submit, work), 2, range(100)))
    assert len(done) <= 8
