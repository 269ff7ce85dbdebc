"""Pictures per second out of tars: read by offset in random order, as a prepared folder does, against webdataset.

    python benchmarks/tar_reading.py [--pictures 1600] [--rounds 5] [--cold] [--smoke]

Eight tars of JPEG files of 640 x 480 with a caption each, as webdataset's own writer makes them. Nothing is decoded:

- offsets: `data.images.read_bytes` of every picture, in a random order of all of them
- webdataset: shuffled tars, then a shuffle buffer of 1,000 samples

`--cold` drops the tars from the system's file cache before each measurement. The last line has our pictures per second
divided by webdataset's (goal 1).
"""

import argparse
import io
import os
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from side_by_side import alternate, compare, last_line, ratio, seconds

from mclip_kit.data.images import read_bytes, tar_member

TARS, BUFFER, GOAL = 8, 1000, 1.0


def written(folder: Path, count: int) -> list[Path]:
    """Tars of smoothed noise."""
    draw, tars = np.random.default_rng(0), [folder / f"{number:05}.tar" for number in range(TARS)]
    for number, tar in enumerate(tars):
        with webdataset.TarWriter(str(tar)) as writer:
            for row in range(number, count, TARS):
                coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
                pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
                grain = pixels + draw.integers(-12, 13, (480, 640, 1), np.int16)  # files of the size of photographs
                content = io.BytesIO()
                Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
                writer.write({"__key__": f"{row:08}", "jpg": content.getvalue(), "txt": f"caption {row}"})
    return tars


def forget(tars: list[Path]) -> None:
    """Drop files from the system's file cache."""
    for tar in tars:
        with open(tar, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Write tars, check that both sides read the same, measure in turns, and end with the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        tars = written(Path(temporary), 40 if asked.smoke else asked.pictures)
        members: list[Path] = []
        for tar in tars:
            with tarfile.open(tar) as opened:
                names = [entry for entry in opened if entry.name.endswith("jpg")]
                members += [Path(tar_member(tar, entry.offset_data, entry.size)) for entry in names]
        size = sum(tar.stat().st_size for tar in tars) / 1e6
        print(f"{len(members):,} pictures, {size:.0f} MB, {'not ' if asked.cold else ''}in the system's file cache")

        def offsets() -> int:
            order = random.Random(0).sample(members, len(members))
            return sum(len(read_bytes(member)) for member in order)

        def samples() -> int:
            found = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=TARS, seed=0).shuffle(BUFFER, seed=0)
            return sum(len(sample["jpg"]) for sample in found)

        assert offsets() == samples()

        def rate(work: Callable[[], object]) -> float:
            if asked.cold:
                forget(tars)
            return len(members) / seconds(work)

        variants = {"ours": lambda: rate(offsets), "webdataset": lambda: rate(samples)}
        rates = alternate(variants, 1 if asked.smoke else asked.rounds)
    compare(rates, "pictures")
    last_line("tar_reading", ratio(rates, "ours", "webdataset"), GOAL)


if __name__ == "__main__":
    main()
