"""The feature cache at many rows: time and private memory of filling a table, of finding all rows again, of opening.

    python benchmarks/cache_scale.py [--rows 10000000] [--smoke]

Tables of 100,000 rows and ten times as many each, up to --rows, are filled, opened and filled again with everything
there, in a process of its own for each. Private memory is the largest of what the process alone has (RssAnon), with
the keys and the sizes of the inputs, 20 bytes a row; it is looked at every few milliseconds. The baseline is the same
search with the keys as they come, on the same mapped index. The last line has the baseline's time a row, divided by
that of ours, at the most rows.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from side_by_side import last_line, memory

from mclip_kit.features.index import find as find_in
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.shards import ItemFormat
from mclip_kit.features.table import Table

GOAL = 3.0
FIRST, WIDTH = 100_000, 8
SHARD = 131_072  # rows of a shard: as many as of 1,024 numbers in fp16
LOOK = 0.003  # seconds between two looks at the memory
FORK = multiprocessing.get_context("fork")


def job_of(rows: int) -> tuple[np.ndarray, ExtractionJob]:
    """Keys of some inputs, and a tower that costs nothing."""
    draw = np.random.default_rng(1)
    keys_N2 = draw.integers(0, 2**64, (rows, 2), np.uint64)
    sizes_N = draw.integers(8, 25, rows, np.int32)

    def run(part: list[int]) -> torch.Tensor:
        return torch.full((len(part), WIDTH), float(part[0] % 7))

    return keys_N2, ExtractionJob(lambda part: (part, []), run, sizes_N, batch_items=16384)


def opened(folder: Path) -> Table:
    """The table, as a new process opens it."""
    item_format = ItemFormat(WIDTH, "fp16")
    return Table(folder, item_format, "made-up features", SHARD * item_format.item_bytes, log=lambda line: None)


def fill(folder: Path, keys_N2: np.ndarray, job: ExtractionJob) -> None:
    """Fill the table; nothing but what is missing is computed."""
    opened(folder).fill(keys_N2, job, rank=1)  # no progress bar


def find(folder: Path, keys_N2: np.ndarray, job: ExtractionJob) -> None:
    """Find all rows."""
    assert opened(folder).find(keys_N2).min() >= 0


def find_unsorted(folder: Path, keys_N2: np.ndarray, job: ExtractionJob) -> None:
    """The baseline: search the keys as they come in each part of the index."""
    row_N = np.full(len(keys_N2), -1)
    for part, numbers in opened(folder)._index:
        left = np.flatnonzero(row_N < 0)
        row_N[left] = find_in(part.columns, keys_N2[left], numbers)
    assert row_N.min() >= 0


def measure(work: Callable[..., None], folder: Path, rows: int, made: bool = True) -> tuple[float, float]:
    """Microseconds and bytes of private memory a row of some work; `made`: it takes made-up keys and a job."""

    def child(out: Connection) -> None:
        out.send(memory("RssAnon"))
        out.recv()
        inputs = job_of(rows) if made else ()
        started = time.perf_counter()
        work(folder, *inputs)
        out.send(time.perf_counter() - started)
        out.recv()  # until its memory has been looked at

    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=child, args=(theirs,))
    process.start()
    theirs.close()
    before = most = int(ours.recv())
    ours.send(None)
    while not ours.poll(LOOK):
        most = max(most, memory("RssAnon", process.pid))
    took = float(ours.recv())
    ours.send(None)
    process.join()
    return 1e6 * took / rows, (most - before) / rows


STEPS = {"fill": fill, "fill, all there": fill, "find": find, "find, as they come": find_unsorted}


def main() -> None:
    """Measure each number of rows, and print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    rows, most = (20_000, 20_000) if asked.smoke else (FIRST, asked.rows)
    times: dict[str, float] = {}
    while rows <= most:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            for name, work in STEPS.items():
                times[name], taken = measure(work, Path(folder), rows)
                print(f"{rows:,} rows, {name}: {times[name]:.2f} us and {taken:.0f} bytes a row", flush=True)
            started = time.perf_counter()
            opened(Path(folder))
            print(f"{rows:,} rows, open: {1000 * (time.perf_counter() - started):.1f} ms", flush=True)
        rows *= 10
    last_line("cache_scale", times["find, as they come"] / times["find"], GOAL)


if __name__ == "__main__":
    main()
