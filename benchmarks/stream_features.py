"""Features in object storage that are five times larger than the room for their copies: how often a shard is brought.

    python benchmarks/stream_features.py [--smoke]

Reads an epoch of made-up features from an object storage in memory in batches of 256: in random order, and with shuffle
windows of which two fit into the room. The last line has how many times more shards the random order brings. `--smoke`
takes fewer and smaller shards, and smaller batches.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable

import fsspec
import numpy as np
import torch
from side_by_side import last_line

from mclip_kit.data.batching import Plan
from mclip_kit.features.ahead import bring_ahead
from mclip_kit.features.extract import Features
from mclip_kit.features.item_format import ItemFormat
from mclip_kit.features.job import ExtractionJob
from mclip_kit.features.table import Table
from mclip_kit.storage import SIZE, place
from mclip_kit.storage.copies import GB
from mclip_kit.urls import ROOT

GOAL = 5.0
WIDTH = 512  # numbers of a row, in fp16
WINDOWS, PART = 10, 5  # a window is a tenth of the rows; the room is a fifth of the bytes
URL = "memory://bucket/features"


def filled(rows: int, shards: int) -> Features:
    """Features of so many made-up inputs."""
    keys_N2 = np.random.default_rng(1).integers(0, 2**64, (rows, 2), np.uint64)
    job = ExtractionJob(lambda part: (part, []), lambda part: torch.zeros(len(part), WIDTH), batch_items=4096)
    item_format = ItemFormat(WIDTH, "fp16")
    size = rows // shards * item_format.item_bytes
    table = Table(place(URL), item_format, "made-up features", size, log=lambda line: None)
    return Features(table, table.fill(keys_N2, job, rank=1))  # no progress bar


def brought(features: Features, batches: Iterable[np.ndarray]) -> int:
    """How many shards are brought in an epoch."""
    system, count = fsspec.filesystem("memory"), 0
    get = type(system).get_file

    def counted(self: object, remote: str, local: str, **options: object) -> None:
        nonlocal count
        count += remote.endswith("values.bin")
        get(self, remote, local, **options)

    type(system).get_file = counted
    try:
        for batch in batches:
            assert len(features.take(batch)) == len(batch)
    finally:
        type(system).get_file = get
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    shards, of_shard, batch = (40, 4, 16) if smoke else (160, 100, 256)
    rows = shards * of_shard
    plans = [Plan(np.zeros(rows, int), np.ones(rows, int), batch, window=window) for window in (None, rows // WINDOWS)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {ROOT: f"{folder}/fills", SIZE: str(GB)}
        filled(rows, shards)
        size = sum(facts["size"] for facts in fsspec.filesystem("memory").find("/bucket", detail=True).values())
        os.environ |= {ROOT: f"{folder}/trains", SIZE: str(size / PART / 1e9)}  # a machine that has no copies
        features = filled(rows, shards)
        random = brought(features, plans[0].epoch(0))
        windows = brought(features, bring_ahead(plans[1].windows(0), 0, features.files, print))
    print(f"{rows:,} rows, {shards} shards of {size / shards / 1e3:.0f} kB, room for a fifth, batches of {batch}")
    print(f"in random order a shard is brought {random / shards:.1f} times an epoch")
    print(f"with windows of {rows // WINDOWS} rows {windows / shards:.2f} times")
    last_line("stream_features", random / windows, GOAL)


if __name__ == "__main__":
    main()
