"""Kill commands at random moments, run them again, and compare what they leave with an uninterrupted one.

    python benchmarks/torture.py [--kills 50] [--terms 20] [--seed 0] [--only NAME] [--smoke]

Each command works on small towers and 96 pictures. It is killed (SIGKILL) after a random part of the time that it
takes, and started again with the same words, until it ends by itself; then its result must be the same to the bit,
nothing that has its final name may ever be partial, and no temporary file may be left. `train` also gets SIGTERM, alone
and with two processes: it must save, exit with 143 and say how to resume.

The commands are forked from a process that has imported everything (tests/processes.py), so that their own work is most
of their time. The last line has the share of the kills and signals after which all of that held.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from side_by_side import last_line

sys.path.insert(0, str(Path(__file__).parents[1]))

from mclip_kit.features.copies import shard_folders
from mclip_kit.features.manage import list_tables
from mclip_kit.features.shards import Shard
from tests import processes, tiny

GOAL = 1.0
TEMPORARY = re.compile(r"\..*\.part.*|mclip_kit-.*|\..*\.lock|\..*\.holder")
"""Names that only a living process may have."""
MOST = 12  # kills of one command before it may end


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        name: for the table.
        words: of the command, with `FOLDER` for the folder in which it works.
        start: what lies in that folder beforehand: name -> where it is copied from.
        result: what the folder has at the end.
        final: names in the folder that are whole or not there at all.
        ranks: processes.
        number: the signal.
    """

    name: str
    words: tuple[str, ...]
    result: Callable[[Path], Any]
    start: dict[str, Path] = field(default_factory=dict)
    final: tuple[str, ...] = ()
    ranks: int = 1
    number: int = signal.SIGKILL


def files(*names: str) -> Callable[[Path], dict[str, str]]:
    """Path -> hash of each file in some folders, but for hidden ones and caches."""

    def read(folder: Path) -> dict[str, str]:
        found = {}
        for name in names:
            for path in sorted((folder / name).rglob("*")):
                parts = path.relative_to(folder).parts
                if path.is_file() and "features" not in parts and not any(part.startswith(".") for part in parts):
                    found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    return read


def trained(folder: Path) -> Any:
    """The weights of a run, and its losses step by step: each row is trained on as often as in a run without a stop."""
    weights = {name: value for name, value in files("run/model")(folder).items() if name.endswith(".safetensors")}
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return weights, [(row["stage"], row["step"], row["loss"]) for row in rows if "loss" in row]


def cached(folder: Path) -> dict[str, dict[str, str]]:
    """Table -> key -> hash of the features; how rows are split into shards does not count."""
    found: dict[str, dict[str, str]] = {}
    for table in list_tables(folder / "features"):
        rows = found.setdefault(table.folder.name, {})
        for shard in (Shard(path, table.item_format) for path in shard_folders(table.folder)):
            for row, key in enumerate(shard.keys_N2):
                place_1 = np.array([row])
                values = shard.take(place_1, shard.bounds(place_1))
                rows[key.tobytes().hex()] = hashlib.sha256(values.tobytes()).hexdigest()
    return found


def scores(folder: Path) -> Any:
    """The figures of an evaluation."""
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return {name: value for name, value in results.items() if name not in ("date", "seconds", "device")}


def cases(base: Path, names: list[str], epochs: int = 6) -> list[Case]:
    """Write the inputs, and the commands that are killed."""
    data = tiny.corpus(base / "data")
    tree = tiny.recipe(data) | {"checkpoint_every": 3, "trackers": []}
    tree["teacher"]["weights"] = "random"
    tree["stages"] = [stage | {"epochs": epochs} for stage in tree["stages"][1:]]
    recipe = tiny.write_recipe(tree, base / "two_stages.yaml")
    student = ("train", str(recipe), "--out", "FOLDER/run", "--resume")
    alone = Case("train", student, trained, final=("run/model",))
    pictures = base / "pictures"
    pictures.mkdir()
    found = tiny.content()
    rows = ["image\ttext_en\ttext_de"]
    for number in range(1500 if set(names) - {"train"} else 0):
        row, pixels = found.rows[number % 96], found.pixels[number % 96]  # type: ignore[index]
        marked = pixels.copy()
        marked[0, 0], marked[0, 1] = number % 256, number // 256
        Image.fromarray(marked).resize((160, 160)).save(pictures / f"{number:04}.png")
        rows.append(f"{number:04}.png\t{row.texts[0][1]} {number}\t{row.texts[1][1]} {number}")
    (base / "pairs.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    prepare = ("prepare", "--pairs", str(base / "pairs.tsv"), "--images", str(pictures), "--out", "FOLDER/data")
    wanted = [alone, Case("prepare", prepare, files("data"), final=("data",))]
    if {"extract", "embed", "export", "eval"} & set(names):
        model = _model(base, recipe)
        many = tiny.write_recipe(tree | _of(base, prepare, tree), base / "many.yaml")
        wanted += [
            Case("extract", ("extract", str(many), "--out", "FOLDER/run"), cached),
            Case("embed", ("embed", str(model), "--images", str(pictures), "--out", "FOLDER/out"), files("out")),
            Case(
                "export",
                ("export", "clip-retrieval", str(model), "--data", str(data), "--out", "FOLDER/out"),
                files("out"),
                final=("out",),
            ),
            Case("eval", ("eval", str(model), "--data", str(data), "--out", "FOLDER/out"), scores),
        ]
    wanted += [
        Case("train, SIGTERM", student, trained, final=("run/model",), number=signal.SIGTERM),
        Case("train, SIGTERM, two processes", student, trained, final=("run/model",), ranks=2, number=signal.SIGTERM),
    ]
    return [case for case in wanted if case.name.partition(",")[0] in names]


def _model(base: Path, recipe: Path) -> Path:
    processes.train(recipe, base / "made" / "run")
    return base / "made" / "run" / "model"


def _of(base: Path, prepare: tuple[str, ...], tree: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe of the last stage alone, on the 1,500 pictures."""
    words = [word.replace("FOLDER", str(base / "many")) for word in prepare]
    done = processes.run(processes.command, *words)
    assert done.returncode == 0, done.stderr
    data = {"captions": str(base / "many" / "data"), "bitext": tree["data"]["bitext"]}
    return {"data": data, "evaluation": None, "stages": tree["stages"][-1:]}


def begin(case: Case, folder: Path) -> processes.Child:
    """Start a command; its temporary files lie in the folder, too."""
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder / "temporary")
    words = [word.replace("FOLDER", str(folder)) for word in case.words]
    return processes.start(processes.command, *words, ranks=case.ranks)


def left(folder: Path) -> list[str]:
    """Temporary files that nobody uses any more."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name)]


def torture(case: Case, folder: Path, wanted: int, draw: random.Random) -> tuple[int, list[str]]:
    """Kill a command `wanted` times; the number of kills, and what went wrong."""
    began = time.monotonic()
    done = begin(case, folder / "whole").wait()
    assert done.returncode == 0, done.stderr
    takes = time.monotonic() - began
    reference = case.result(folder / "whole")
    whole = {name: files(name)(folder / "whole") for name in case.final}
    problems: list[str] = []
    kills, after = 0, 0
    place = folder / "killed"
    while kills < wanted:
        child = begin(case, place)
        end = time.monotonic() + draw.uniform(0.02, 1.0) * takes
        while child.poll() is None and time.monotonic() < end and after < MOST:
            time.sleep(0.005)
        if child.poll() is None and after < MOST:
            child.send_signal(case.number)
            child.wait()
            kills, after = kills + 1, after + 1
            codes = [rank.exitcode for rank in child.ranks]  # of those that wait, one is killed when another has ended
            if case.number == signal.SIGTERM and not {143, -signal.SIGTERM, 0} & set(codes):
                problems.append(f"exit codes {codes}: {child.stderr[-300:]}")
            for name in case.final:
                if (place / name).exists() and not _is_whole(name, files(name)(place), whole[name]):
                    problems.append(f"{name} is partial after kill {kills}")
            continue
        child.wait()
        if child.returncode != 0 and "exists already" not in child.stderr:  # an export that was whole before
            problems.append(f"exit code {child.returncode} after {after} kills: {child.stderr[-500:]}")
        else:
            if case.result(place) != reference:
                problems.append(f"another result after {after} kills")
            problems += [f"{name} is left after {after} kills" for name in left(place)]
        shutil.rmtree(place)
        after = 0
    if place.exists():
        done = begin(case, place).wait()
        failed = done.returncode != 0 and "exists already" not in done.stderr
        if failed or case.result(place) != reference:
            problems.append(f"another result, or exit code {done.returncode}, at the end: {done.stderr[-500:]}")
        problems += [f"{name} is left at the end" for name in left(place)]
    shutil.rmtree(folder)
    return kills, problems


def _is_whole(name: str, found: dict[str, str], whole: dict[str, str]) -> bool:
    """Whether a folder has all its files; a model folder has them once it has config.json, which is written last."""
    if name.endswith("model") and f"{name}/config.json" not in found:
        return True
    return found.keys() >= {file for file in whole if not file.endswith(("README.md", "card.json"))}


def main() -> None:
    """Kill, compare, print a table."""
    names = ["train", "prepare", "extract", "embed", "export", "eval"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs to train, with one process and with two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=names)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    chosen = [asked.only] if asked.only else ["train"] if asked.smoke else names
    draw = random.Random(asked.seed)
    total, bad, seconds = 0, 0, []
    print("| command | signals | what went wrong | minutes |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases(Path(temporary), chosen, 1 if asked.smoke else 6):
            if asked.smoke and case.ranks > 1:
                continue
            count = asked.kills if case.number == signal.SIGKILL else asked.terms
            began = time.monotonic()
            kills, problems = torture(case, Path(temporary) / "work", 1 if asked.smoke else count, draw)
            seconds.append(time.monotonic() - began)
            print(f"| {case.name} | {kills} | {len(problems) or 'nothing'} | {seconds[-1] / 60:.1f} |", flush=True)
            for problem in problems:
                print(f"  {problem}", file=sys.stderr, flush=True)
            total, bad = total + kills, bad + min(kills, len(problems))
    print(f"{total} signals, {bad} with something wrong; median of a command {median(seconds) / 60:.1f} minutes")
    last_line("torture", 1 - bad / total, GOAL)


if __name__ == "__main__":
    main()
