"""`mclip-kit train` at many rows: seconds until it has taken ten steps, and private bytes a row of all its processes.

    python benchmarks/train_scale.py [--rows 10000000] [--ranks 1 2 4] [--kinds captions pairs translate]
                                     [--finish] [--place FOLDER] [--smoke]

Three recipes of tiny towers: a triangle's stage on captions (five for each picture, a fifth of them in English), one on
sentence pairs (four languages with the same English side, whose sentences are rows too), and translation on these pairs
(each into English). The prepared folder is made up, with hashes and fingerprints as `prepare` writes them; features of
frozen towers are made-up numbers that `Table.fill` wrote. Each recipe starts with its rows there, with one process and
with several under torchrun, on the CPU; and once without, so that the process makes them. Each start is a fresh
command, stopped by SIGTERM once ten steps are logged; it must end as one that was asked to stop.

Seconds of computing are those of all processes and cores together: other work on the computer hardly lengthens them.
Private memory is Pss_Anon and Pss_Shmem of every process that was started, together, looked at while they run: the
largest sum, and that at the tenth step. The same command on 1,000 rows is subtracted. Maps of files do not count. The
last line has 60 bytes, divided by the largest sum of a start that finds its rows, in bytes a row.

`--finish` trains on the captions to the end instead, an epoch of mean squared errors in large batches with each number
of processes, which must all end with 0: once as the other starts do, and with `--cold`, for few rows, from pictures and
an empty cache, which all processes fill together. The last line has the share of runs that ended so.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from scale import LANGUAGES, prepared
from side_by_side import last_line

from mclip_kit.data.columns import open_columns, write_columns
from mclip_kit.data.fairseq_io import sentence_writer, write_dictionary
from mclip_kit.data.tables import OF_IMAGES
from mclip_kit.data.tokenizer import MODEL_FILE, XlmrTokenizer, train_sentencepiece
from mclip_kit.files import hash_files, write_json

GOAL = 1.0
BYTES = 60  # a row, of all processes together
FEW = 1000  # rows whose processes' memory is subtracted
BATCH, STEPS = 512, 10
LOOK = 0.05  # seconds between two looks at the memory
PATIENCE = 1200  # seconds; a start that takes longer has failed

TEACHER: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
ENCODER = {"layers": 1, "width": 8, "heads": 2, "ffn": 32, "dropout": 0.0, "positions": 40, "weights": "random"}
MSE = {"teacher_text-student_text": {"loss": "mse"}}
TRIANGLE: dict[str, Any] = {"name": "triangle", "train": ["projector"], "epochs": 1000, "batch_size": BATCH, "lr": 1e-3}
CAPTIONS = {"data": "captions", "edges": {"image-student_text": {"loss": "contrastive"}, **MSE}}
TRANSLATE = {"kind": "translate", "name": "translation", "train": ["decoder"], "steps": 1000000, "lr": 1e-3}
TRANSLATE |= {"batch_tokens": 8192, "directions": [f"{code}-en" for code in LANGUAGES[1:]]}
STAGES = {"captions": TRIANGLE | CAPTIONS, "pairs": TRIANGLE | {"data": "bitext", "edges": MSE}, "translate": TRANSLATE}


def bitext(folder: Path, pairs: int) -> None:
    """Write parallel sentences: each language with the same English ones, all with a number, so that none is twice."""
    folder.mkdir()
    lines = (f"{code} text {number} of a picture {number * 7919}" for number in range(500) for code in LANGUAGES)
    tokenizer = train_sentencepiece(lines, folder / MODEL_FILE, 200, 1.0)
    write_dictionary(tokenizer.pieces(), *(folder / f"dict.{code}.txt" for code in LANGUAGES))
    for code in LANGUAGES[1:]:
        for language in (code, "en"):
            _side(folder / f"train.{code}-en.{language}", language, pairs // (len(LANGUAGES) - 1), tokenizer)


def _side(prefix: Path, language: str, count: int, tokenizer: XlmrTokenizer, block: int = 2**16) -> None:
    """A side: its texts, and ids that are drawn, six to twenty a sentence, with `</s>` at the end of each."""
    random = np.random.default_rng(int.from_bytes(language.encode()))
    with sentence_writer(prefix, tokenizer.vocabulary) as writer, open(f"{prefix}.txt", "w", encoding="ascii") as out:
        for start in range(0, count, block):
            numbers = range(start, min(count, start + block))
            out.writelines(f"{language} {number} sentences of a translation, with their number\n" for number in numbers)
            sizes_N = random.integers(6, 21, len(numbers))
            ids = random.integers(4, tokenizer.vocabulary - 1, int(sizes_N.sum()))
            ids[np.cumsum(sizes_N) - 1] = 2
            writer.add(ids, sizes_N)


def data(place: Path, rows: int) -> None:
    """A prepared folder with captions and bitext of so many rows each, its hashes, and a test set beside it."""
    folder = place / "data"
    prepared(folder, rows)
    bitext(folder / "bitext", rows)
    for own, split, count in ((folder, "train", rows), (place / "test", "test", 10)):
        (own / "fingerprints").mkdir(parents=True)
        numbers = np.random.default_rng(len(split)).integers(1, 2**63, count, np.uint64)
        numbers.tofile(own / "fingerprints" / f"{split}.texts.u64")
        files = [path for path in own.rglob("*") if path.is_file() and path.name != "manifest.json"]
        known = dict(zip((str(path.relative_to(own)) for path in files), hash_files(files), strict=True))
        write_json(own / "manifest.json", {"files": known})


def pictures(folder: Path, count: int) -> None:
    """Give a prepared folder pictures of its own, all of them different."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), np.uint8)
    np.save(folder / "images.npy", pixels)
    table = open_columns(folder / "images.arrow", pa.schema(OF_IMAGES)).select(list(OF_IMAGES)).combine_chunks()
    columns = {name: table[name].to_pylist() for name in OF_IMAGES}
    write_columns(folder / "images.arrow", pa.schema(OF_IMAGES), [columns])
    write_json(folder / "manifest.json", {"files": {}})


def recipe(place: Path, kind: str) -> Path:
    """The recipe of a kind."""
    towers = {"teacher": {"model": TEACHER, "weights": "random"}, "projector": {"kind": "altclip", "pool": "cls"}}
    own = {"decoder": {"layers": 1}} if kind == "translate" else towers
    folders = {"captions": str(place / "data")} if kind == "captions" else {}
    tree = {"about": kind, "seed": 1, "precision": "fp32", "encoder": ENCODER, "stages": [STAGES[kind]], **own}
    tree |= {"data": {"bitext": str(place / "data" / "bitext"), **folders}, "cache": {"folder": str(place / "cache")}}
    path = place / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def fill(place: Path, kind: str) -> None:
    """Make the rows of a kind, and write features of all that its frozen towers read; once in a process."""
    from dataclasses import replace

    from mclip_kit.config.recipe import load
    from mclip_kit.features.job import items_of
    from mclip_kit.features.table import Table
    from mclip_kit.train.run import Run

    real = Table.fill

    def made_up(table: Table, keys_N2: np.ndarray, job: Any, rank: int = 0, world_size: int = 1) -> np.ndarray:
        def run(part: Any) -> torch.Tensor:
            return torch.zeros(int(items_of(job, np.array(part)).sum()), table.item_format.width)

        quick = replace(job, load=lambda part: (part, []), run=run, batch_items=16384, workers=0)
        return real(table, keys_N2, quick, 1, world_size)

    Table.fill = made_up  # type: ignore[method-assign]
    Run(load(recipe(place, kind)), place / "filled").extract()


class Node:
    """A command and all processes that it starts.

    Attributes:
        most: bytes of the largest sum of their private memory that was seen.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.most = 0
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def computed(self) -> float:
        """Seconds that all processes have computed, on all cores together."""
        return sum(map(_cores, _family(self.process.pid)))

    def look(self) -> int:
        """Bytes of private memory of all processes now."""
        now = sum(_private(number) for number in _family(self.process.pid))
        self.most = max(self.most, now)
        return now


def _family(number: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield number
    with suppress(OSError):
        for thread in Path(f"/proc/{number}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))


def _cores(number: int) -> float:
    """Seconds that a process has computed, on all cores together."""
    with suppress(OSError), open(f"/proc/{number}/stat", encoding="ascii") as handle:
        return sum(map(int, handle.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _private(number: int) -> int:
    """Bytes of a process that are not a file's; of what it shares, its share."""
    with suppress(OSError), open(f"/proc/{number}/smaps_rollup", encoding="ascii") as handle:
        return sum(int(line.split()[1]) << 10 for line in handle if line.startswith(("Pss_Anon", "Pss_Shmem")))
    return 0


@contextmanager
def started(place: Path, kind: str, ranks: int, *options: str) -> Iterator[tuple[Node, Path]]:
    """`train` in so many processes, in a folder of its own; they are killed at the end, if they are still there."""
    run = place / f"run-{kind}"
    shutil.rmtree(run, ignore_errors=True)
    words = ["-m", "mclip_kit.cli", "train", str(place / f"{kind}.yaml"), "--out", str(run), *options]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    node = Node([sys.executable, *(launcher if ranks > 1 else []), *words], place / f"{kind}.log")
    try:
        yield node, run / "metrics.jsonl"
    finally:
        for number in [*_family(node.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        node.process.wait()


def stop(node: Node, ranks: int) -> None:
    """Ask a run to stop; it must end as one that was asked."""
    node.process.send_signal(signal.SIGTERM)
    status = node.process.wait(PATIENCE)
    if status not in ((128 + signal.SIGTERM,) if ranks == 1 else (1, -signal.SIGTERM, 128 + signal.SIGTERM)):
        raise SystemExit(f"ended with {status}")


def measure(place: Path, kind: str, ranks: int) -> tuple[float, float, int, int]:
    """Seconds until the tenth step, also of computing; bytes of private memory: the largest sum, and at this step."""
    began = time.monotonic()
    with started(place, kind, ranks) as (node, log):
        while not (log.is_file() and log.stat().st_size):
            if node.process.poll() is not None or time.monotonic() - began > PATIENCE:
                raise SystemExit(f"{kind}: no step: {(place / f'{kind}.log').read_text()[-2000:]}")
            node.look()
            time.sleep(LOOK)
        found = time.monotonic() - began, node.computed(), node.most, node.look()
        stop(node, ranks)
    return found


def finish(place: Path, rows: int, ranks: int) -> bool:
    """Train on the captions to the end; whether all processes ended with 0."""
    edges = "{teacher_text-student_text: {loss: mse, missing_teacher: image}}"
    changes = [
        f"stages.0.edges={edges}",
        "stages.0.epochs=1",
        f"stages.0.batch_size={max(ranks, rows // ranks // 8 * ranks)}",
    ]
    began = time.monotonic()
    with started(place, "captions", ranks, *(word for change in changes for word in ("--set", change))) as (node, _):
        status = node.process.wait(PATIENCE)
    print(
        f"{rows // 5:,} pictures, {ranks} ranks: ended with {status} after {time.monotonic() - began:.0f} s", flush=True
    )
    if status:
        print((place / "captions.log").read_text()[-2000:], flush=True)
    return status == 0


def made(place: Path, rows: int, kinds: list[str], cold: bool = False) -> None:
    """Data, recipes and, unless the cache is to be cold, features; what is there is taken."""
    if not (place / "data" / "manifest.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        data(place, rows)
        if cold:
            pictures(place / "data", rows // len(LANGUAGES))
    if cold:
        shutil.rmtree(place / "cache", ignore_errors=True)
    for kind in kinds:
        recipe(place, kind)
        stamp = place / f"{kind}.filled"
        if not stamp.is_file() and not cold:
            words = f"import train_scale, pathlib; train_scale.fill(pathlib.Path({str(place)!r}), {kind!r})"
            path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
            subprocess.run([sys.executable, "-c", words], check=True, env={**os.environ, "PYTHONPATH": path})
            stamp.touch()


def starts(place: Path, kind: str, ranks: list[int]) -> dict[str, tuple[float, float, int, int]]:
    """Start -> what was measured of it; the last finds no rows, and makes them."""
    found = {f"rows there, {count} rank": measure(place, kind, count) for count in ranks}
    for folder in (place / "cache").glob("rows-*"):
        shutil.rmtree(folder)
    return found | {f"rows made, {ranks[0]} rank": measure(place, kind, ranks[0])}


def main() -> None:
    """Measure each kind and number of processes, and print a line for each start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--kinds", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--finish", action="store_true", help="train to the end")
    parser.add_argument("--cold", action="store_true", help="--finish: with an empty cache")
    parser.add_argument("--place", type=Path, help="keeps what is made up, and takes what is there")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        place = (asked.place or Path(folder)).absolute()
        if asked.finish:
            many = place / (f"cold-{asked.rows}" if asked.cold else str(asked.rows))
            made(many, asked.rows, ["captions"], asked.cold)
            ended = [finish(many, asked.rows, count) for count in asked.ranks]
            last_line("train_scale", sum(ended) / len(ended), GOAL)
        elif asked.smoke:
            data(place, FEW)
            fill(place, "pairs")
            last_line("train_scale", BYTES * FEW / measure(place, "pairs", 1)[2], GOAL)
        else:
            worst = compared(place, asked.rows, asked.kinds, asked.ranks)
            last_line("train_scale", BYTES / max(worst, 0.1), GOAL)


def compared(place: Path, rows: int, kinds: list[str], ranks: list[int]) -> float:
    """Print a line for each start; the most bytes a row of those that find their rows."""
    few, many, worst = place / "few", place / str(rows), 0.0
    made(few, FEW, kinds)
    made(many, rows, kinds)
    for kind in kinds:
        base = starts(few, kind, ranks)
        for name, (took, computed, *many_bytes) in starts(many, kind, ranks).items():
            memory = [(now - before) / rows for now, before in zip(many_bytes, base[name][2:], strict=True)]
            print(
                f"{rows:,} {kind}, {name}: {took:.1f} s, {computed:.1f} s of computing, {memory[0]:.1f} bytes a row at "
                f"most, {memory[1]:.1f} at step {STEPS}; {FEW:,} rows: {base[name][0]:.1f} s, {base[name][1]:.1f} s, "
                f"{base[name][2] >> 20} MiB",
                flush=True,
            )
            worst = max(worst, memory[0]) if name.startswith("rows there") else worst
    return worst


if __name__ == "__main__":
    main()
