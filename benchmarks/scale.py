"""How a run starts at many rows: microseconds and private bytes a row until its first batch is read.

    python benchmarks/scale.py [--rows 10000000] [--smoke]

A prepared folder of made-up captions, five for each picture, a fifth of them in English, is started three times, each
time in a process of its own: the first start makes the rows of the run and the places of their features, the others map
them. A text's ids are its bytes, and features of pictures, teacher texts and student texts are there before the clock
starts, as numbers that cost nothing. What is measured: opening the tables, rows, places, the plan of an epoch, and a
batch of 1,024 rows. Private memory is the largest RssAnon above what the process had before; maps do not count, and
what the process reuses of the memory that it was forked with is hidden. The last line has the time of the first start,
divided by that of the second.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from cache_scale import SHARD, WIDTH, measure
from side_by_side import last_line

from mclip_kit.data.batching import Plan
from mclip_kit.data.captions import read_captions
from mclip_kit.data.columns import ROWS, key_column, write_columns
from mclip_kit.data.content_keys import hash_bytes
from mclip_kit.data.datasets import rows_from_captions
from mclip_kit.data.row_files import once
from mclip_kit.data.tables import FILES, OF_CAPTIONS, OF_IMAGES
from mclip_kit.data.triangle_rows import TriangleRows, open_rows, write_rows
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.places import find_once
from mclip_kit.features.table import Table
from mclip_kit.files import write_json

GOAL = 5.0
LANGUAGES = ("en", "de", "fr", "zh", "ru")
BATCH = 1024


def prepared(folder: Path, rows: int) -> None:
    """Write a prepared folder."""
    images = rows // len(LANGUAGES)

    def pictures() -> Iterator[dict[str, object]]:
        for start in range(0, images, ROWS):
            names = [f"{number}.jpg" for number in range(start, min(images, start + ROWS))]
            groups = np.arange(start, start + len(names))
            keys_N2 = hash_bytes(name.encode() for name in names)
            yield {"image": names, "group": groups, "stratum": ["all"] * len(names), "file": names} | {
                "key": key_column(keys_N2)
            }

    def captions() -> Iterator[dict[str, object]]:
        for start in range(0, images, ROWS // len(LANGUAGES)):
            own = range(start, min(images, start + ROWS // len(LANGUAGES)))
            texts = [f"{language} text {number} of a picture" for number in own for language in LANGUAGES]
            numbers = np.repeat(np.array(own, np.int32), len(LANGUAGES))
            yield {"image": numbers, "language": [*LANGUAGES] * len(own), "split": ["train"] * len(texts)} | {
                "caption": texts
            }

    folder.mkdir()
    write_columns(folder / "images.arrow", pa.schema({**OF_IMAGES, **FILES}), pictures())
    write_columns(folder / "captions.arrow", pa.schema(OF_CAPTIONS), captions())
    write_json(folder / "manifest.json", {"files": {}})


def tokenize(texts: list[str]) -> list[np.ndarray]:
    """The bytes of texts, as ids."""
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]


def rows_of(place: Path) -> TriangleRows:
    """The rows of the run; they are made if they are not there."""
    captions = read_captions(place / "data")

    def write(part: Path) -> None:
        write_rows(part, rows_from_captions(captions, "train", "all", "en", tokenize))

    return open_rows(once(place / "rows", write))


def tables(place: Path, rows: TriangleRows) -> dict[str, tuple[Table, np.ndarray]]:
    """Table -> the keys of what is read from it."""
    keys_I2 = read_captions(place / "data").keys
    assert keys_I2 is not None
    keys = {"image": lambda: keys_I2[rows.images_N], "teacher": lambda: rows.teacher_keys_N2}
    keys["student"] = lambda: rows.token_keys_N2
    return {name: (_table(place / name), own) for name, own in keys.items()}  # type: ignore[misc]


def _table(folder: Path) -> Table:
    item_format = ItemFormat(WIDTH, "fp16")
    return Table(folder, item_format, "made-up features", SHARD * item_format.item_bytes, log=lambda line: None)


def fill(place: Path) -> None:
    """Features of all rows, made before the clock starts; the rows are then made anew."""
    rows = rows_of(place)
    for table, keys in tables(place, rows).values():
        job = ExtractionJob(lambda part: (part, []), lambda part: torch.zeros(len(part), WIDTH), batch_items=16384)
        table.fill(keys(), job, rank=1)
    shutil.rmtree(place / "rows")


def start(place: Path, *_: object) -> None:
    """From nothing to a batch."""
    rows = rows_of(place)
    found = {name: find_once(table, keys, place / "rows") for name, (table, keys) in tables(place, rows).items()}
    plan = Plan(rows.languages_N, rows.lengths_N, BATCH, sources_N=rows.sources_N)
    batch = plan.epoch(0)[0]
    _ = [rows.tokens[row] for row in batch], [rows.teacher_texts[row] for row in batch]
    for name, (table, _) in tables(place, rows).items():
        assert len(table.take(found[name][batch])) == BATCH  # type: ignore[index]


def main() -> None:
    """Measure each number of rows, and print a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    rows, most = (10_000, 10_000) if asked.smoke else (100_000, asked.rows)
    times: list[float] = []
    while rows <= most:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            prepared(Path(folder, "data"), rows)
            fill(Path(folder))
            times = []
            for name in ("first start", "second start", "third start"):
                took, memory = measure(start, Path(folder), rows, made=False)
                times.append(took)
                print(f"{rows:,} rows, {name}: {took:.2f} us and {memory:.0f} bytes a row", flush=True)
        rows *= 10
    last_line("scale", times[0] / times[1], GOAL)


if __name__ == "__main__":
    main()
