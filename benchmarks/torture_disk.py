"""A disk that is full in the middle of prepare, extract, embed, report and a checkpoint: after room is made, all ends.

    python benchmarks/torture_disk.py [--rounds 4] [--smoke]

The disk is a tmpfs (only root can mount one), filled so that a random part of what the command writes still fits, in
every fourth round not one byte. The command must end with code 2 and one line that names a path of the disk, without a
traceback; what was there before must be whole, and no temporary file may be left. Then room is made and the same
command is run again (train with --resume, as its line says): it must end well, and its files must be those of a run
that nothing disturbed, byte for byte.

Without the right to mount, the limit on the size of a file (RLIMIT_FSIZE) takes the disk's place, and the program says
so. The last line has the share of the rounds that recovered (goal 1). `--smoke` runs one round of two commands.
"""

import argparse
import multiprocessing
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file
from side_by_side import last_line

sys.path.append(str(Path(__file__).parents[1]))
import mclip_kit.search.embed
import mclip_kit.train.run  # noqa: F401  (the forked commands start faster)
from mclip_kit.cli import main as mclip_kit_main
from tests import tiny

SIZE = 64 << 20  # bytes of the disk
KINDS = ("prepare", "extract", "checkpoint", "embed", "report")
LEFT = re.compile(r"\..*\.part(\..*)?|\..*\.(lock|holder)|mclip_kit-.*")


KEPT = (".bin", ".idx", ".arrow", ".npy", ".safetensors")  # files whose contents are compared


def typed(words: Sequence[str], limit: int | None = None) -> tuple[int, str]:
    """Exit code and output of `mclip-kit WORDS` in a process of its own."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as said:

        def child() -> None:
            for number in (1, 2):
                os.dup2(os.open(said.name, os.O_WRONLY | os.O_APPEND), number)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            torch.set_num_threads(1)
            sys.argv = ["mclip-kit", *words]
            mclip_kit_main()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        return int(process.exitcode or 0), said.read()


def content(folder: Path, but: Sequence[str] = ("manifest.json", "index.json")) -> dict[str, bytes]:
    """Files that two runs of a command have in common, byte for byte; weights as numbers."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "files-" in str(path.relative_to(folder)):  # the table of hashes of files has their time of change
            continue
        if (
            path.is_file()
            and path.suffix in (".bin", ".idx", ".arrow", ".npy", ".safetensors")
            and path.name not in but
        ):
            weights = load_file(path) if path.suffix == ".safetensors" else None
            found[str(path.relative_to(folder))] = (
                b"".join(name.encode() + value.numpy().tobytes() for name, value in sorted(weights.items()))
                if weights
                else path.read_bytes()
            )
    return found


def size(folder: Path) -> int:
    """Bytes that the files below a folder take on the disk, in whole blocks."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


class Disk:
    """A small disk at a path, or a limit on the size of files in its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
        self.real = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.limit: int | None = None

    def fill(self, room: int) -> None:
        """Leave so many bytes."""
        if not self.real:
            self.limit = room // 4
            return
        status = os.statvfs(self.folder)
        with suppress(OSError), open(self.folder / "ballast", "wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, max(1, status.f_bavail * status.f_frsize - room))

    def free(self) -> None:
        self.limit = None
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        if self.real:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


def wrong(kind: str, disk: Disk, words: Sequence[str], again: Sequence[str], room: int, whole: dict[str, bytes]) -> str:
    """What a round shows that must not be; empty: it recovered."""
    disk.fill(room)
    code, said = typed(words, disk.limit)
    lines = [line for line in said.splitlines() if line.startswith("Error: ")]
    last = disk.folder / "run" / "checkpoints" / "last.pt"
    if code == 0 and disk.real:
        return f"nothing failed with {room:,} bytes left"
    if code and (code != 2 or len(lines) != 1 or str(disk.folder) not in lines[0] or "Traceback" in said):
        return f"exit {code}: {said[-2000:]}"
    if last.is_file():
        torch.load(last, weights_only=True)
    if [path for path in disk.folder.rglob("*") if LEFT.fullmatch(path.name)]:
        return f"left over: {[str(path) for path in disk.folder.rglob('*') if LEFT.fullmatch(path.name)]}"
    disk.free()
    code, said = typed(again)
    if code:
        return f"again, with room: exit {code}: {said[-2000:]}"
    return "" if content(disk.folder) == whole else f"{kind}: other files than those of an undisturbed run"


def commands(work: Path) -> Callable[[str, Path], list[str]]:
    """What is typed for a kind, writing below a folder."""
    data = tiny.corpus(work / "data")
    pictures = tiny.class_folders(work / "pictures")
    recipe = tiny.write_recipe(tiny.recipe(data), work / "tiny.yaml")
    code, said = typed(["train", str(recipe), "--out", str(work / "runs" / "run")])
    assert code == 0, said
    frozen = tiny.recipe(data)
    frozen["teacher"] = {"model": tiny.TEACHER, "weights": "random"}
    frozen["stages"] = frozen["stages"][2:]
    extracted = tiny.write_recipe(frozen, work / "frozen.yaml")
    run = work / "runs" / "run"

    def words(kind: str, below: Path) -> list[str]:
        return {
            "prepare": ["prepare", "--folder", str(pictures), "--out", str(below / "out")],
            "extract": ["extract", str(extracted), "--out", str(below / "run")],
            "checkpoint": ["train", str(recipe), "--out", str(below / "run")],
            "embed": ["embed", str(run / "model"), "--images", str(pictures), "--out", str(below / "out")],
            "report": ["report", str(run), "--out", str(below / "report.html")],
        }[kind]

    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of each of the five commands")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    kinds, rounds = (("report", "prepare"), 1) if given.smoke else (KINDS, given.rounds)
    draw, recovered = random.Random(0), 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        words = commands(work)
        for kind in kinds:
            disk = Disk(work / f"whole-{kind}")
            try:
                code, said = typed(words(kind, disk.folder))
                assert code == 0, said
                whole, needed = content(disk.folder), size(disk.folder)
                real = disk.real
            finally:
                disk.close()
            good = 0
            for number in range(rounds):
                room = 0 if number % 4 == 3 else int(draw.uniform(0, 0.9) * needed)
                again = [*words(kind, work / "disk"), *(["--resume"] if kind == "checkpoint" else [])]
                disk = Disk(work / "disk")
                try:
                    why = wrong(kind, disk, words(kind, disk.folder), again, room, whole)
                finally:
                    disk.close()
                    shutil.rmtree(disk.folder)
                good += not why
                if why:
                    print(f"{kind}, round {number + 1}, {room:,} of {needed:,} bytes left: {why}")
            how = "a full disk" if real else "no right to mount: a limit on the size of files"
            print(f"{kind:10} {good} of {rounds} recovered ({needed:,} bytes; {how})", flush=True)
            recovered += good
    last_line("torture_disk", recovered / (len(kinds) * rounds), 1)


if __name__ == "__main__":
    main()
