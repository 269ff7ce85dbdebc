"""Preparing on a Ray cluster of one machine against its worker processes: `--engine ray` and `--engine local` in turns.

    python benchmarks/engine.py [--rows 400000] [--rounds 3] [--smoke]

The input is parallel text of random words (`--bitext`, with a given vocabulary). Whole commands, start-up included; a
cluster is started and ended each time. On one machine Ray only costs: `engine_time` says how much. The last line has
the part of the files that are the same, byte for byte.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from prepare import made_up
from prepare_workers import content
from side_by_side import alternate, last_line, ratio, run, seconds, spread

GOAL, TIME_GOAL = 1, 1.5
ENGINES = {"local": ["--engine", "local"], "ray": ["--engine", "ray", "--address", "local"]}


def prepare(folder: Path, model: Path, engine: str, workers: int) -> None:
    """Run the command; its error output is shown if it fails."""
    sides = [f"{language}={folder / f'train.{language}'}" for language in ("en", "de")]
    options = ["--bitext", *sides, "--spm", str(model), "--workers", str(workers), *ENGINES[engine]]
    command = [sys.executable, "-m", "mclip_kit.cli", "prepare", *options, "--again", "--out", str(folder / engine)]
    run(command, OMP_NUM_THREADS="1")  # of a process


def main() -> None:
    """Measure in turns, compare the files, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    rows, rounds = (2000, 0) if asked.smoke else (asked.rows, asked.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = made_up(folder, rows)
        runs = {name: partial(seconds, partial(prepare, folder, model, name, asked.workers)) for name in ENGINES}
        figures = alternate(runs, rounds)
        for name, values in figures.items():
            print(f"{name}: {spread(values)} s", flush=True)
        last_line("engine_time", ratio(figures, "ray", "local"), TIME_GOAL, "lower")
        local, ray = content(folder / "local"), content(folder / "ray")
    same = [name for name in local | ray if local.get(name) == ray.get(name)]
    last_line("engine", len(same) / len(local | ray), GOAL)


if __name__ == "__main__":
    main()
