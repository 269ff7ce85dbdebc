"""Captions come back as they were written, in blocks, without those that are dropped."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.prepare import caption_rows
from mclip_kit.data.prepare.caption_rows import CaptionRows

Rows = list[tuple[int, str, str, str]]
ROWS: Rows = [
    (number // 2, ["en", "de", "zh_tw"][number % 3], ["train", "test_a", "valid"][number % 7 // 3], text)
    for number, text in enumerate(["ein Hund", "犬", "a", "", "dog \U0001f415", "x" * 99, "é"] * 3)
]


def written(folder: Path, rows: Rows) -> CaptionRows:
    with CaptionRows(folder) as captions:
        for start in range(0, len(rows), 4):
            block = rows[start : start + 4]
            captions.write([list(column) for column in zip(*block, strict=True)], np.arange(start, start + len(block)))
    return captions


def read(captions: CaptionRows) -> list[Rows]:
    blocks = ([column.to_pylist() for column in block.values()] for block in captions.columns())
    return [list(zip(*columns, strict=True)) for columns in blocks]


@pytest.mark.parametrize("held", [1, 6, 100])
def test_blocks_have_as_many_rows_as_an_arrow_file_takes(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caption_rows, "HELD", held)
    monkeypatch.setattr(caption_rows, "ROWS", 8)
    captions = written(tmp_path, ROWS)
    assert read(captions) == [ROWS[:8], ROWS[8:16], ROWS[16:]]
    assert captions.hashes_N.tolist() == list(range(21))
    assert captions.in_splits(("test", "valid")).tolist() == [row[2] != "train" for row in ROWS]
    of = [(split, number) for split, hashes_N in captions.split_hashes() for number in hashes_N.tolist()]
    assert sorted(of, key=lambda pair: pair[1]) == [(row[2], number) for number, row in enumerate(ROWS)]
    captions.remove()
    assert list(tmp_path.iterdir()) == []


def test_dropped_rows_are_in_no_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_rows, "ROWS", 4)
    captions = written(tmp_path, ROWS)
    for dropped in ([0, 1, 5], [2, 6, 7, 8, 9, 10, 20]):
        captions.drop(np.isin(np.arange(21), dropped))
    kept = [row for number, row in enumerate(ROWS) if number not in (0, 1, 2, 5, 6, 7, 8, 9, 10, 20)]
    assert read(captions) == [kept[:4], kept[4:8], kept[8:]]
    assert list(captions.chosen(captions.in_splits(""))) == [row[:3] for row in kept]
    assert sum(len(hashes_N) for _, hashes_N in captions.split_hashes()) == len(kept)


def test_no_captions(tmp_path: Path) -> None:
    captions = written(tmp_path, [])
    assert read(captions) == []
    assert captions.in_splits("").tolist() == []
