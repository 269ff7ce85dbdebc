"""Memory of the feature cache: filling a table and training on it take memory that does not grow with its rows.

    python benchmarks/cache_memory.py [--smoke]

Fills a table of 10,000 and one of 1,000,000 random rows, and gathers an epoch of random batches of 256 from each. Each
table has a separate process; once with pooled rows, once with token states of sentences. `--smoke` uses fewer rows with
as many bytes. The last line has the ratio of the peaks, large table to small table, the larger one.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.shards import Layout
from mclip_kit.features.table import Table

GOAL = 1.5
BATCH = 256
SMALL = 10_000
TOKENS = 16  # mean length of a sentence
# rows and width of the large tables: 0.5 GB each, in fp16
SIZES = {False: {"pooled": (1_000_000, 256), "tokens": (1_000_000, 16)}}
SIZES[True] = {"pooled": (250_000, 1024), "tokens": (250_000, 64)}


def work(rows: int, width: int, ragged: bool) -> tuple[np.ndarray, ExtractionJob]:
    """Keys of some rows, and a tower that takes no time."""
    draw = np.random.default_rng(1)
    keys_N2 = draw.integers(0, 2**64, (rows, 2), np.uint64)
    sizes_N = draw.integers(TOKENS // 2, 3 * TOKENS // 2 + 1, rows)

    def run(part: list[int]) -> torch.Tensor:
        items = int(sizes_N[part].sum()) if ragged else len(part)
        return torch.full((items, width), float(part[0] % 7))

    return keys_N2, ExtractionJob(lambda part: (part, []), run, sizes_N, ragged, batch_items=4096)


def use(folder: Path, rows: int, width: int, ragged: bool) -> None:
    """Fill a table and gather an epoch of batches from it; print the peak memory so far after each step."""
    keys_N2, tower = work(rows, width, ragged)
    table = Table(folder, Layout(width, "fp16"), "random features", log=lambda line: None)
    places_N = table.fill(keys_N2, tower)
    print(high_water())
    for batch in np.array_split(np.random.default_rng(2).permutation(rows), -(-rows // BATCH)):
        assert len(table.take(places_N[batch])) >= len(batch)
    print(high_water())


def peaks(folder: Path, rows: int, width: int, kind: str) -> list[int]:
    """Peak memory of a separate process, MB: up to the end of the filling, and up to the end of the epoch."""
    command = [sys.executable, __file__, "--one", str(folder), str(rows), str(width), kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [int(line) for line in done.stdout.split()]


def high_water() -> int:
    """Peak resident memory of this process so far, MB."""
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) for line in handle if line.startswith("VmHWM")) // 1024


def main() -> None:
    """Measure, and print a line for each table and step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        folder, rows, width, kind = asked.one
        use(Path(folder), int(rows), int(width), kind == "tokens")
        return
    worst = 0.0
    for kind, (many, width) in SIZES[asked.smoke].items():
        with tempfile.TemporaryDirectory(dir=".") as folder:
            small, large = (peaks(Path(folder, str(rows)), rows, width, kind) for rows in (SMALL, many))
        for step, few, more in zip(("filling", "an epoch"), small, large, strict=True):
            print(f"{kind}, {step}: {few} MB for {SMALL:,} rows, {more} MB for {many:,}", flush=True)
            worst = max(worst, more / few)
    print(f"cache_memory ratio={worst:.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
