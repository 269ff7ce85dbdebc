"""How large each part of an installation is, and how long it takes.

    python docs/measure_installs.py [--python PYTHON] [--work DIR]

Installs this checkout into a fresh environment, then each extra into an environment of its own that sees the first one,
so that its figures are what it adds. MB are those on disk afterwards; seconds are pip's, on this machine and this
network, with an empty cache. The table goes to docs/installs.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PathDistribution
from pathlib import Path

from packaging.requirements import Requirement

from mclip_kit.files import write_text

ROOT = Path(__file__).parents[1]
LARGEST = 4  # folders that are named
HEAD = """# Sizes of installations

Written by `python docs/measure_installs.py`, on Python {python}. An extra has what it
adds to the default installation.

| what | MB | seconds | packages | largest |
| --- | --- | --- | --- | --- |"""


def site(environment: Path) -> Path:
    """The packages of an environment."""
    (found,) = environment.glob("lib/python3.*/site-packages")
    return found


def create(folder: Path, python: str, below: Path | None = None) -> Path:
    """A new environment with the newest pip; it sees the packages of another one."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "--upgrade", "pip"], check=True)
    if below is not None:
        (site(folder) / "below.pth").write_text(f"{site(below)}\n", encoding="utf-8")
    return folder


def megabytes(path: Path) -> float:
    """Of a folder with all below it, or of a file."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if not file.is_symlink() and file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def installed(environment: Path, *words: str) -> str:
    """Install into an environment; the row of the table, without its name."""
    place = site(environment)
    before = {path.name for path in place.iterdir()}
    began = time.monotonic()
    command = [environment / "bin/python", "-m", "pip", "install", "-q", "--no-cache-dir", *words]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    seconds = time.monotonic() - began
    new = [path for path in place.iterdir() if path.name not in before]
    sizes = {path.name.removesuffix(".libs"): megabytes(path) for path in new}
    packages = sum(path.name.endswith(".dist-info") for path in new)
    largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
    named = ", ".join(f"{name} {sizes[name]:,.0f}" for name in largest if sizes[name] >= 1)
    return f"{sum(sizes.values()):,.0f} | {seconds:.0f} | {packages} | {named}"


def extras(environment: Path) -> dict[str, list[str]]:
    """Extra -> its requirements for this Python, as the installed package says."""
    (info,) = site(environment).glob("mclip_kit-*.dist-info")
    found: dict[str, list[str]] = {}
    metadata = PathDistribution(info).metadata
    for extra in metadata.get_all("Provides-Extra") or []:
        wanted = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
        found[extra] = [
            str(one).partition(";")[0].strip()
            for one in wanted
            if one.marker and "extra" in str(one.marker) and one.marker.evaluate({"extra": extra})
        ]
    return found


def main() -> None:
    """Install, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--work", type=Path, help="where the environments are made  [default: a temporary folder]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.work) as temporary:
        base = create(Path(temporary) / "base", asked.python)
        rows = [f"| default | {installed(base, str(ROOT))} |"]
        print(rows[0], flush=True)
        for extra, requirements in extras(base).items():
            row = installed(create(Path(temporary) / extra, asked.python, base), *requirements)
            rows.append(f"| `{extra}` | {row} |")
            print(rows[-1], flush=True)
        version = subprocess.run([base / "bin/python", "-V"], check=True, capture_output=True, text=True).stdout
    head = HEAD.format(python=version.split()[-1])
    write_text(ROOT / "docs" / "installs.md", "\n".join([head, *rows, ""]))


if __name__ == "__main__":
    main()
