"""Measure every speed and memory figure, one script after the other, and write the tables of docs/performance.md.

    python benchmarks/bench.py [NAME ...] [--again NAME ...] [--page] [--smoke]

`bench_table.py` says which scripts there are. Each runs as a process with a time limit, alone: other work on the
machine makes the spread wider, and its load is kept with the figures. What was measured is in
benchmarks/results/NAME.json: the ratio of every round, median, least, most, goal, machine, versions, command. Without
names, what has no such file yet is measured, or has other options or figures now; after an interruption the same
command continues. `--again NAME` measures once more, keeps the medians of before, and says whether the new one is
within their spread.
`--page` only writes the page. `--smoke` runs the small form of each script; its figures go to build/bench-smoke and not
to the page.

The last line has the share of figures that meet their goal.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import bench_page
import peers
import psutil
from bench_table import BENCHES, Bench
from side_by_side import last_line

from mclip_kit.files import write_json

ROOT = Path(__file__).parents[1]
RESULTS, SMOKE = ROOT / "benchmarks" / "results", Path("build", "bench-smoke")
GOAL = 1
ROUNDS = re.compile(r"^(\w+) rounds=([\d.,]+) better=(higher|lower)$", re.MULTILINE)
RATIO = re.compile(r"^(\w+) ratio=[\d.]+ goal=([\d.]+)$", re.MULTILINE)
PACKAGES = [
    *("mclip-kit", "torch", "torchvision", "transformers", "accelerate", "open_clip_torch", "sentence-transformers"),
    *("clip-benchmark", "clip-retrieval", "ve-fairseq", "webdataset", "sentencepiece", "numpy", "pyarrow"),
    *("faiss-cpu", "onnxruntime", "ray"),
]
Figures = dict[str, dict[str, Any]]


class Failed(Exception):
    """A script that gave no figures, and why."""


def printed(command: list[str], seconds: float, place: Path) -> str:
    """What a command prints to its standard output; it and all that it started are ended after some seconds."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"HF_HUB_OFFLINE": "1"} | os.environ | {"PYTHONPATH": path}
    with open(place / "errors.txt", "w+b") as errors:
        pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        process = subprocess.Popen(command, cwd=place, env=environment, start_new_session=True, **pipes)
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"no end within {seconds / 60:g} minutes") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        if process.returncode:
            raise Failed(f"exit code {process.returncode}: {errors.read().decode(errors='replace')[-2000:].strip()}")
    shutil.rmtree(place)
    return out


def parse(text: str) -> Figures:
    """Figure -> its ratio of every round, its goal, and which side of it is better; in the order of the lines."""
    rounds = {
        name: ([float(value) for value in values.split(",")], better) for name, values, better in ROUNDS.findall(text)
    }
    found = {name: float(goal) for name, goal in RATIO.findall(text)}
    if not found or rounds.keys() != found.keys():
        raise Failed(f"its lines `NAME rounds=` and `NAME ratio=` do not fit together: {text[-500:]}")
    return {name: {"rounds": rounds[name][0], "better": rounds[name][1], "goal": goal} for name, goal in found.items()}


def judged(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure with its median, its spread, and whether it meets its goal."""
    values, goal = figure["rounds"], figure["goal"]
    middle = median(values)
    met = middle >= goal if figure["better"] == "higher" else middle <= goal
    return figure | {"median": middle, "min": min(values), "max": max(values), "met": met}


def machine(gpu: bool = False) -> dict[str, Any]:
    """What the figures depend on of this computer; with its GPU if that was used."""
    with open("/proc/cpuinfo", encoding="utf-8") as handle:
        models = [line.partition(":")[2].strip() for line in handle if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **({"gpu": gpu_name()} if gpu else {}),
    }


def versions(python: str) -> dict[str, str]:
    """Package -> its version in the environment of an interpreter, if it is there."""
    code = f"""
import importlib.metadata, json
found = {{}}
for name in {PACKAGES!r}:
    try: found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: pass
print(json.dumps(found))
"""
    return dict(json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout))


def typed(bench: Bench, smoke: bool) -> str:
    """What a person types to run a script."""
    return f"python benchmarks/{bench.script}.py --smoke" if smoke else bench.command


def measured(bench: Bench, smoke: bool) -> dict[str, Any]:
    """Run a script as often as its row says, and return its result."""
    python, began = peers.python(bench.peer), datetime.datetime.now(datetime.UTC)
    command = [python, str(ROOT / "benchmarks" / f"{bench.script}.py"), *([] if smoke else bench.options.split())]
    command += ["--smoke"] if smoke else []
    load, texts = os.getloadavg()[0], []
    for _ in range(1 if smoke else bench.times):
        texts.append(printed(command, 60 * bench.minutes, Path("build", "bench", bench.script).absolute()))
    figures: Figures = {}
    for found in map(parse, texts):
        for name, figure in found.items():
            figures.setdefault(name, figure | {"rounds": []})["rounds"] += figure["rounds"]
    if figures.keys() != bench.figures.keys():
        raise Failed(f"it prints {', '.join(figures)}, and bench_table.py has {', '.join(bench.figures)}")
    return {
        "command": typed(bench, smoke),
        "figures": {name: judged(figure) for name, figure in figures.items()},
        "date": began.date().isoformat(),
        "seconds": round((datetime.datetime.now(datetime.UTC) - began).total_seconds(), 1),
        "starts": len(texts),
        "load": round(load, 2),
        "machine": machine(bench.gpu and not smoke),
        "versions": versions(python),
        "printed": [line for text in texts for line in text.splitlines()],
    }


def said(name: str, figure: dict[str, Any]) -> str:
    """A figure, as a line."""
    side = "at least" if figure["better"] == "higher" else "at most"
    met = "met" if figure["met"] else "NOT MET"
    return f"  {name} {bench_page.spread(figure)}, goal {side} {figure['goal']:g}: {met}"


def history(old: dict[str, Any], command: str) -> list[dict[str, Any]]:
    """What the same command gave before, the latest last; nothing if there is no such result."""
    if old.get("command") != command:
        return []
    latest = {name: {key: figure[key] for key in ("median", "min", "max")} for name, figure in old["figures"].items()}
    return [*old["earlier"], {"date": old["date"], "load": old["load"], "figures": latest}]


def compared(result: dict[str, Any]) -> Iterator[str]:
    """A line for each figure that was measured before: whether the medians are within the spread of one another."""
    for name, now in result["figures"].items():
        old = bench_page.latest(result["earlier"], name)
        if old is not None:
            before = old["figures"][name]
            side = "within" if bench_page.alike(before, now) else "OUTSIDE"
            yield f"  {name} on {old['date']}: {bench_page.spread(before)}, {side} the spread"


def chosen(names: list[str], again: list[str], folder: Path, smoke: bool) -> list[Bench]:
    """The scripts to measure."""
    wanted = [bench for bench in BENCHES if not (names or again) or bench.script in (*names, *again)]
    return [bench for bench in wanted if bench.script in again or not is_measured(bench, kept(folder, bench), smoke)]


def is_measured(bench: Bench, result: dict[str, Any], smoke: bool) -> bool:
    """Whether a result is of the script's options and has all its figures."""
    same = result.get("command") == typed(bench, smoke)
    return same and result["figures"].keys() == bench.figures.keys()


def kept(folder: Path, bench: Bench) -> dict[str, Any]:
    """What was measured of a script; nothing if it was not."""
    file = folder / f"{bench.script}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def gpu_name() -> str:
    """The name of torch's CUDA device; empty if it has none."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def run(benches: list[Bench], folder: Path, smoke: bool) -> list[str]:
    """Measure scripts and write what was found; the names of those that failed."""
    failed, cores = [], len(os.sched_getaffinity(0))
    if benches and not smoke and os.getloadavg()[0] > cores / 4:
        print(
            f"other work is running (load {os.getloadavg()[0]:.1f}, {cores} cores): ratios will spread wider",
            flush=True,
        )
    for number, bench in enumerate(benches, 1):
        print(f"[{number}/{len(benches)}] {bench.command}", flush=True)
        if bench.gpu and not smoke and not gpu_name():
            print("  left out: it needs a GPU", flush=True)
            continue
        try:
            result = measured(bench, smoke)
        except Failed as error:
            failed.append(bench.script)
            print(f"  FAILED: {error}", flush=True)
            continue
        result["earlier"] = history(kept(folder, bench), result["command"])
        write_json(folder / f"{bench.script}.json", result)
        print("\n".join(said(name, figure) for name, figure in result["figures"].items()))
        print(*compared(result), f"  {result['seconds']:.0f} s", sep="\n", flush=True)
        if not smoke:
            bench_page.write(folder)
    return failed


def main() -> None:
    """Measure what is missing, write the page, and end with the share of goals that are met."""
    names = [bench.script for bench in BENCHES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="measure these once more")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md alone")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    unknown = [name for name in (*asked.names, *asked.again) if name not in names]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(names)}")
    folder = SMOKE if asked.smoke else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    failed = [] if asked.page else run(chosen(asked.names, asked.again, folder, asked.smoke), folder, asked.smoke)
    if not asked.smoke:
        bench_page.write(folder)
    figures = [figure for bench in BENCHES for figure in kept(folder, bench).get("figures", {}).values()]
    if failed:
        sys.exit(f"bench: {', '.join(failed)} gave no figures")
    last_line("bench", sum(figure["met"] for figure in figures) / max(1, len(figures)), GOAL)


if __name__ == "__main__":
    main()
