"""Memory of preparing parallel text: it does not grow with the number of lines.

    python benchmarks/prepare_memory.py [--source MULTI30K] [--smoke]

Runs `mclip-kit prepare --bitext` on English and German of Multi30K's training part (58,000 lines), and on the same
files repeated a hundred times (5.8 million), both with two worker processes and XLM-R's vocabulary. Meanwhile it adds
up the memory of the command and its workers (proportional set size). Without Multi30K, or with `--smoke`, text and
vocabulary are small and random, and the large files are fifty times as large as the small ones. The last line has the
peak of the large files divided by that of the small ones.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from prepare import MULTI30K, text_of
from side_by_side import last_line

GOAL = 1.5
WORKERS = "import mclip_kit.data.prepare.binarize as b; b.LARGE = 0; from mclip_kit.cli import main; main()"
"""The command, with worker processes for any number of lines."""


def repeated(folder: Path, times: int) -> Path:
    """Write the training files, repeated so many times; their folder."""
    out = folder / f"times{times}"
    out.mkdir()
    for language in ("en", "de"):
        text = (folder / f"train.{language}").read_bytes()
        with open(out / f"train.{language}", "wb") as handle:
            for _ in range(times):
                handle.write(text)
    return out


def peak(folder: Path, model: Path) -> tuple[int, int, float]:
    """Lines, peak memory of the command with its children in bytes, and seconds."""
    sides = [f"{language}={folder / f'train.{language}'}" for language in ("en", "de")]
    command = [sys.executable, "-c", WORKERS, "prepare", "--bitext", *sides, "--spm", str(model), "--workers", "2"]
    start, most = time.perf_counter(), 0
    process = subprocess.Popen([*command, "--out", str(folder / "out")], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, memory(psutil.Process(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    lines = sum((folder / f"train.{language}").read_bytes().count(b"\n") for language in ("en", "de"))
    return lines, most, time.perf_counter() - start


def memory(process: psutil.Process) -> int:
    """Sum of the proportional set sizes of a process and those of its children that still run, in bytes."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass
    return total


def main() -> None:
    """Measure both, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=MULTI30K, help="Multi30K, as its authors publish it.")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, real = text_of(asked.source, folder, asked.smoke)
        peaks = []
        for times in (1, 100 if real else 50):
            lines, most, seconds = peak(repeated(folder, times), model)
            peaks.append(most)
            print(f"{lines:,} lines: {most / 1e6:.0f} MB, {seconds:.1f} s, {lines / seconds:,.0f} lines/s", flush=True)
    last_line("prepare_memory", peaks[1] / peaks[0], GOAL, "lower")


if __name__ == "__main__":
    main()
