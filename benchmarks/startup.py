"""Seconds from a command to its first result, on models and features that are there.

    python benchmarks/startup.py [--place FOLDER] [--rounds 5] [--only NAME ...] [--smoke]

- help: `mclip-kit --help`, until it ends (goal 0.3 s)
- train: `recipes/quickstart_trikd.yaml`, until its first ten steps are logged (goal 6 s): both towers are frozen, and
  their features are cached; the score before the first step is part of it
- eval: of the quickstart's model, until its table is printed; vectors are those that the warm-up has kept
- search: in an index of the quickstart's pictures, until the first picture is printed

Beside each is its floor, which is Python with nothing but the packages that it needs: `python -c "import torch"`, and
so on. All are fresh processes, in turns, and keep compiled modules as Python does unless it is told not to
(PYTHONDONTWRITEBYTECODE). CPU is that of the process and of those that it waited for, until it was
stopped; other work on the machine lengthens it less than the wall clock.

FOLDER is where `make demo` has run; the repository, without the option. Nothing is written there but
rows in its cache, and the index in a temporary folder. `--smoke` makes models of its own that are tiny, and
measures `help` and `train` alone. The last line has the smallest of goal divided by seconds.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from side_by_side import alternate, last_line, spread

GOALS = {"help": 0.3, "train": 6.0}
SMOKE = ("help", "train")
GOAL = 1.0
LOOK = 0.01  # seconds between two looks at the log
PATIENCE = 600  # seconds; a command that takes longer has failed
KIT = (sys.executable, "-m", "mclip_kit.cli")
TOWERS = "import torch, transformers.models.xlm_roberta.modeling_xlm_roberta"
FLOORS = {
    "help": "import click, pydantic, yaml",
    "train": f"{TOWERS}, open_clip, accelerate",
    "eval": f"{TOWERS}, open_clip",
    "search": f"{TOWERS}, faiss",
}
QUERY = "a red apple"
Ready = Callable[[subprocess.Popen[bytes]], bool]


@dataclass(frozen=True)
class Place:
    """What the commands read: a model folder, an index of pictures, a recipe and a feature cache."""

    model: Path
    index: Path
    recipe: Path
    cache: Path
    data: Path


def first(command: list[str], ready: Ready, folder: Path, cpu: dict[str, list[float]], name: str) -> float:
    """Seconds until a command is ready; it is killed then. Its seconds of CPU go to a list."""
    with open(folder / f"{name}.log", "wb") as errors:
        began = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=environment)
        found = ready(process)
        took = time.perf_counter() - began
        os.kill(process.pid, signal.SIGKILL)  # Popen would look whether it has ended, and take what wait4 reports
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stdout
    process.stdout.close()
    if not found:
        said = (folder / f"{name}.log").read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(command)}: no result, ended with {process.returncode}:\n{said}")
    cpu.setdefault(name, []).append(used.ru_utime + used.ru_stime)
    return took


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait until a command has printed all and closed its output."""
    assert process.stdout
    process.stdout.read()
    return True


def printed(line: bytes) -> Ready:
    """Wait until a command prints a line that begins so."""

    def ready(process: subprocess.Popen[bytes]) -> bool:
        assert process.stdout
        return any(found.startswith(line) for found in process.stdout)

    return ready


def stepped(log: Path) -> Ready:
    """Wait until a run has logged a step of training, in a log that is not there yet."""

    def ready(process: subprocess.Popen[bytes]) -> bool:
        began = time.monotonic()
        while not (log.is_file() and b'"grad_norm"' in log.read_bytes()):
            over = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # leaves it to wait4
            if over or time.monotonic() - began > PATIENCE:
                return False
            time.sleep(LOOK)
        return True

    return ready


def commands(place: Place, folder: Path) -> dict[str, tuple[list[str], Callable[[], Ready]]]:
    """Name -> the command, and what makes the wait for its result."""
    runs = iter(range(10_000))
    options = ["--set", f"cache.folder={place.cache}"]

    def train() -> Ready:
        found["train"][0][-1] = str(folder / f"run{next(runs)}")
        return stepped(Path(found["train"][0][-1], "metrics.jsonl"))

    scored = [
        "--data",
        str(place.data),
        "--split",
        "valid",
        "--out",
        str(folder / "eval"),
        "--cache",
        str(folder / "c"),
    ]
    found: dict[str, tuple[list[str], Callable[[], Ready]]] = {
        "help": ([*KIT, "--help"], lambda: ended),
        "train": ([*KIT, "train", str(place.recipe), *options, "--out", ""], train),
        "eval": ([*KIT, "eval", str(place.model), *scored], lambda: printed(str(place.model).encode())),
        "search": ([*KIT, "search", str(place.index), QUERY, "--model", str(place.model)], lambda: printed(b"  1")),
    }
    return found


def demo(place: Path, folder: Path) -> Place:
    """The place where `make demo` has run, and an index of its pictures in a folder."""
    model, data = place / "runs/quickstart/model", place / "data/emoji"
    for needed in (model / "config.json", data / "manifest.json", place / "encoders/e5-small"):
        if not needed.exists():
            raise SystemExit(f"{needed}: missing; run `make demo` there, or give --place")
    shipped = Path(__file__).parents[1] / "recipes/quickstart_trikd.yaml"
    tree = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    tree |= {"teacher": {"model": f"local-dir:{model / 'clip'}"}, "encoder": f"hf:{place / 'encoders/e5-small'}"}
    tree["data"] = {"captions": str(data), "bitext": str(data / "bitext")}
    return Place(model, indexed(model, data, folder), written(tree, folder), place / "runs/features", data)


def tiny_place(folder: Path) -> Place:
    """Untrained towers of a few numbers, the coloured squares of the tests, and a recipe for them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from mclip_kit.config.recipe import load
    from mclip_kit.train.build import build_model
    from tests import tiny

    data = tiny.corpus(folder / "data")
    tree = tiny.recipe(data)
    model: Any = build_model(load(str(tiny.write_recipe(tree, folder / "tiny.yaml"))))
    model.save(folder / "model")
    tree |= {"teacher": {"model": f"local-dir:{folder / 'model/clip'}"}, "encoder": f"hf:{folder / 'model/encoder'}"}
    tree |= {"stages": [tree["stages"][1] | {"train": ["projector"], "epochs": 100}]}
    index = indexed(folder / "model", data, folder)
    return Place(folder / "model", index, written(tree, folder), folder / "features", data)


def written(tree: dict[str, Any], folder: Path) -> Path:
    """A recipe's file."""
    path = folder / "startup.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return path


def indexed(model: Path, data: Path, folder: Path) -> Path:
    """An index of the pictures of a prepared folder."""
    from mclip_kit.models.multilingual_clip import load
    from mclip_kit.search.embed import embed_pictures
    from mclip_kit.search.index import build

    embed_pictures(load(model, "cpu"), data, folder / "vectors", workers=0)
    build(folder / "vectors", folder / "index")
    return folder / "index"


def main() -> None:
    """Measure in turns, and print each with its floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(FLOORS), default=list(FLOORS))
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        place = tiny_place(folder) if asked.smoke else demo(asked.place.absolute(), folder)
        measured: dict[str, Callable[[], float]] = {}
        for name, (command, ready) in commands(place, folder).items():
            if name not in (SMOKE if asked.smoke else asked.only):
                continue
            measured[name] = lambda c=command, r=ready, n=name: first(c, r(), folder, cpu, n)
            if not asked.smoke or name == "help":
                bare = [sys.executable, "-c", FLOORS[name]]
                measured[f"floor of {name}"] = lambda c=bare, n=name: first(c, ended, folder, cpu, f"floor of {n}")
        figures = alternate(measured, 0 if asked.smoke else asked.rounds)
    for name, values in figures.items():
        goal = f", goal {GOALS[name]:g} s" if name in GOALS else ""
        used = cpu[name][-len(values) :]
        print(f"{name}: {spread(values)} s{goal}; CPU {spread(used)} s", flush=True)
    shares = {name: [goal / value for value in figures[name]] for name, goal in GOALS.items() if name in figures}
    for name, values in shares.items():
        last_line(f"startup_{name}", values, GOAL)
    last_line("startup", [min(values) for values in zip(*shares.values(), strict=True)] or 0.0, GOAL)


if __name__ == "__main__":
    main()
