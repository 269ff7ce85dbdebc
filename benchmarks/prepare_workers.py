"""Preparing with two worker processes against one: `mclip-kit prepare --workers 1` and `--workers 2` in turns.

    python benchmarks/prepare_workers.py [--rows 400000] [--pictures 48000] [--rounds 5] [--only NAME] [--smoke]

Three inputs, made up of random words and noise: parallel text (`--bitext`, with a given vocabulary), a table with
names of pictures and captions (`--pairs`; the pictures are not there), and shards of small JPEGs with captions
(`--webdataset`). Whole commands, start-up included; both must write the same files. The last line has the smaller of
the ratios of `--pairs` and `--webdataset`: seconds of one process divided by those of two. It needs two idle cores.
"""

import argparse
import io
import random
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from prepare import made_up
from side_by_side import alternate, last_line, ratio, run, seconds, spread

GOAL = 1.8
SHARDS = 16
JUDGED = ("pairs", "webdataset")


def write_table(path: Path, rows: int) -> None:
    """Write a table with a picture's name and a caption in each row."""
    draw = random.Random(2)
    words = ["".join(draw.choices("aeioudlmnrst", k=draw.randint(2, 8))) for _ in range(3000)]
    with open(path, "w", encoding="utf-8") as handle:
        handle.write("image\tcaption\n")
        for row in range(rows):
            handle.write(f"pictures/{row:08}.jpg\t{' '.join(draw.choices(words, k=draw.randint(4, 16)))}\n")


def write_shards(folder: Path, pictures: int) -> None:
    """Write shards of JPEGs of about 7 kB, each different, with a caption."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3), np.uint8)
    files = []
    for picture in noise:
        held = io.BytesIO()
        Image.fromarray(picture).save(held, "JPEG", quality=50)
        files.append(held.getvalue())
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number in range(pictures // SHARDS):
                key = f"{shard:05}{number:05}"
                members = {"jpg": files[number % len(files)] + key.encode(), "txt": f"a picture {key}".encode()}
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def prepare(options: list[str], out: Path, workers: int) -> None:
    """Run the command; its error output is shown if it fails."""
    command = [sys.executable, "-m", "mclip_kit.cli", "prepare", *options, "--again", "--out", str(out)]
    run([*command, "--workers", str(workers)], OMP_NUM_THREADS="1")  # of a process


def content(folder: Path) -> dict[str, bytes]:
    """The files of a prepared folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    """Measure in turns, compare the files, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000, help="Of the table and of the parallel text.")
    parser.add_argument("--pictures", type=int, default=48_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("bitext", *JUDGED), help="This input alone.")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    rows, pictures, rounds = (2000, 64, 0) if asked.smoke else (asked.rows, asked.pictures, asked.rounds)
    ratios = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = made_up(folder, rows if asked.only in (None, "bitext") else 200)
        (folder / "table").mkdir()
        (folder / "shards").mkdir()
        write_table(folder / "table" / "t.tsv", rows)
        write_shards(folder / "shards", pictures)
        sides = [f"{language}={folder / f'train.{language}'}" for language in ("en", "de")]
        inputs = {
            "bitext": ["--bitext", *sides, "--spm", str(model)],
            "pairs": ["--pairs", str(folder / "table" / "t.tsv")],
            "webdataset": ["--webdataset", str(folder / "shards" / "*.tar")],
        }
        for name, options in inputs.items():
            if asked.only not in (None, name):
                continue
            outs = {f"{name} --workers {workers}": folder / f"{name}{workers}" for workers in (1, 2)}
            runs = {
                text: partial(seconds, partial(prepare, options, out, workers))
                for workers, (text, out) in enumerate(outs.items(), 1)
            }
            figures = alternate(runs, rounds)
            one, two = figures
            assert content(outs[one]) == content(outs[two]), f"{name}: the files differ"
            for text, values in figures.items():
                print(f"{text}: {spread(values)} s", flush=True)
            found = ratio(figures, one, two)
            ratios[name] = found
            print(f"{name}: ratio by round {spread(found)}", flush=True)
    judged = {name: values for name, values in ratios.items() if asked.only or name in JUDGED}
    for name, values in judged.items():
        last_line(f"prepare_workers_{name}", values, GOAL)
    last_line("prepare_workers", min(judged.values(), key=median), GOAL)


if __name__ == "__main__":
    main()
