"""What the parts of docs/results.md share: scores that are computed once, and tables over several seeds."""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mclip_kit.files import write_json

Scores = dict[str, Any]


def at_hand() -> Path | None:
    """Multi30K's folder, if it exists: MULTI30K=DIR, else ../shared/data/multi30k."""
    default = Path(__file__).parents[2] / "shared" / "data" / "multi30k"
    folder = Path(os.environ.get("MULTI30K", default))
    return folder if folder.is_dir() else None


def asked(about: str | None, name: str) -> tuple[list[int], Path, bool]:
    """What a script's command line asks for: the seeds, the folder of kept scores, and whether it is a smoke run.

    Args:
        about: the script's docstring.
        name: of its folder in runs/.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    seeds = [1] if given.smoke else [int(seed) for seed in given.seeds.split(",")]
    return seeds, Path("runs", f"{name}-smoke" if given.smoke else name), given.smoke


def kept(folder: Path, make: Callable[[], Scores]) -> Scores:
    """The scores of a run in a folder, computed once; a run that was interrupted starts again."""
    file = folder / "scores.json"
    if not file.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        write_json(file, make())
    return dict(json.loads(file.read_text(encoding="utf-8")))


def over(seeds: list[Scores], *path: str) -> list[float]:
    """One number of each seed.

    Args:
        path: keys, from the outside to the inside.
    """
    values = []
    for value in seeds:
        for key in path:
            value = value[key]
        values.append(float(value))  # type: ignore[arg-type]
    return values


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, as a cell."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    """The first lines of a table."""
    return [row(*cells), row(*["---"] * len(cells))]
