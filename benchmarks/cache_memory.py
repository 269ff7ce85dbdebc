"""Memory of the feature cache: what filling a table and training on it take does not grow with its rows.

    python benchmarks/cache_memory.py [--smoke]

Fills a table of 10,000 and one of 1,000,000 made-up rows, and gathers an epoch of random batches of 256 from each, each
in a forked process; pooled rows, and token states of sentences. `--smoke` takes fewer rows. The last line has the
largest peak of a large table over that of the small one.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from side_by_side import last_line

from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.table import Table

GOAL = 1.5
BATCH = 256
SMALL = 10_000
TOKENS = 16  # of a sentence, in the mean
# rows and width of the large tables: 0.5 GB each, in fp16; 0.1 GB with --smoke
SIZES = {False: {"pooled": (1_000_000, 256), "tokens": (1_000_000, 16)}}
SIZES[True] = {"pooled": (50_000, 1024), "tokens": (50_000, 64)}
FORK = multiprocessing.get_context("fork")


def made_up_job(rows: int, width: int, ragged: bool) -> tuple[np.ndarray, ExtractionJob]:
    """Keys of some rows, and a tower that costs nothing."""
    draw = np.random.default_rng(1)
    keys_N2 = draw.integers(0, 2**64, (rows, 2), np.uint64)
    sizes_N = draw.integers(TOKENS // 2, 3 * TOKENS // 2 + 1, rows)

    def run(part: list[int]) -> torch.Tensor:
        items = int(sizes_N[part].sum()) if ragged else len(part)
        return torch.full((items, width), float(part[0] % 7))

    return keys_N2, ExtractionJob(lambda part: (part, []), run, sizes_N, ragged, batch_items=4096)


def use(folder: Path, rows: int, width: int, ragged: bool, peaks: Connection) -> None:
    """Fill a table and gather an epoch of batches from it; send the most memory taken so far after each."""
    keys_N2, job = made_up_job(rows, width, ragged)
    table = Table(folder, ItemFormat(width, "fp16"), "made-up features", log=lambda line: None)
    places_N = table.fill(keys_N2, job, rank=1)  # no progress bar
    peaks.send(high_water())
    for batch in np.array_split(np.random.default_rng(2).permutation(rows), -(-rows // BATCH)):
        assert len(table.take(places_N[batch])) >= len(batch)
    peaks.send(high_water())


def peaks(rows: int, width: int, ragged: bool) -> list[int]:
    """MB that a forked process takes at most, up to the end of the filling and of the epoch."""
    ours, theirs = FORK.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        process = FORK.Process(target=use, args=(Path(folder), rows, width, ragged, theirs))
        process.start()
        theirs.close()
        found = [int(ours.recv()), int(ours.recv())]
        process.join()
    return found


def high_water() -> int:
    """Most resident memory of this process so far, MB."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) for line in handle if line.startswith("VmHWM")) // 1024


def measure(smoke: bool) -> Iterator[tuple[str, int, int, int, int]]:
    """For each kind of table and step: its name, MB of a small and of a large table, rows and MB of the large one."""
    for kind, (many, width) in SIZES[smoke].items():
        small, large = (peaks(rows, width, kind == "tokens") for rows in (SMALL, many))
        size = many * width * 2 * (TOKENS if kind == "tokens" else 1) // 2**20
        for step, few, more in zip(("filling", "an epoch"), small, large, strict=True):
            yield f"{kind}, {step}", few, more, many, size


def main() -> None:
    """Measure, and print a line for each table and step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    worst = 0.0
    for name, few, more, rows, _ in measure(parser.parse_args().smoke):
        print(f"{name}: {few} MB for {SMALL:,} rows, {more} MB for {rows:,}", flush=True)
        worst = max(worst, more / few)
    last_line("cache_memory", worst, GOAL, "lower")


if __name__ == "__main__":
    main()
