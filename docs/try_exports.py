"""Try every exported folder with its own library alone: a fresh environment without mclip-kit, offline, after `mv`.

    python docs/try_exports.py [FORMAT ...] [--model DIR --data DIR] [--python PYTHON ...] [--work DIR]

For each format it makes a virtual environment, installs there what the card of the folder says, and runs the card's
lines of use from another folder, with a picture photo.jpg beside them and HF_HUB_OFFLINE=1. Then the format's file of
mclip_kit/interop/readers/ runs in that environment, and its embeddings are compared with the model's. Of a
clip-retrieval folder it runs the card's `clip-retrieval index` and looks captions up in the faiss index of pictures.

Models are tiny ones, or MODEL with the prepared folder it was trained on. torch is large: it is installed once, into
an environment of its own that the others see; its version and torchvision's are those of the environment that runs
this script. WORK keeps the environments, and those that are there are used again; a new WORK makes fresh ones.
The table goes to docs/tried_exports.md, or to --out FILE.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mclip_kit.data.captions import Captions

ROOT = Path(__file__).parents[1]
HEAD = """# Exports in their own libraries alone

Written by `python docs/try_exports.py`, which says what it does. Each row is a folder that was moved, then used in an
environment that has the packages of its card and not mclip-kit, offline, from another folder. "Difference" is the
largest one of the library's embeddings there from the model's, of texts and pictures that the format promises to keep.

| format | model, options | Python | packages | lines of use | difference |
| --- | --- | --- | --- | --- | --- |"""
TRIED: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "open-clip": [("altclip", {}), ("altclip", {"tower": "teacher"})],
    "sentence-transformers": [("altclip", {}), ("altclip", {"text_only": True})],
    "transformers": [("altclip", {}), ("linear", {})],
    "onnx": [("altclip", {}), ("altclip", {"int8": True})],
    "diffusers": [("altclip", {})],
    "clip-retrieval": [("altclip", {})],
}
"""Format -> heads of tiny models, with options of the export."""
WITHOUT_TORCH = ("onnx",)
TOLD = ("open_clip_torch", "sentence-transformers", "transformers", "onnxruntime", "tokenizers", "clip_retrieval")
TOLD += ("diffusers", "autofaiss", "faiss-cpu", "torch", "torchvision", "pillow", "numpy")
"""Packages whose versions are told."""
LOOK_UP = """
import sys
from pathlib import Path
import faiss, numpy as np, pyarrow.parquet as pq
folder, queries = Path(sys.argv[1]), np.load(sys.argv[2])
names = [name for file in sorted((folder / "metadata").iterdir()) for name in pq.read_table(file)["image"].to_pylist()]
print("\\n".join(names[row] for row in faiss.read_index(str(folder / "image.index")).search(queries, 1)[1][:, 0]))
"""


@dataclass
class Row:
    """A row of the table."""

    name: str
    label: str
    python: str
    versions: dict[str, str]
    lines: str
    difference: str = ""
    failed: bool = False


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder, offline, without this checkout and without the variables of this environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    kept |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(list(map(str, command)), cwd=folder, env=kept, capture_output=True, text=True, check=False)


def output(command: Sequence[str | Path], folder: Path) -> str:
    """What a command prints; the script ends if it fails."""
    done = run(command, folder)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done.stdout


class Environments:
    """Virtual environments of a Python, in a folder of its version."""

    def __init__(self, work: Path, python: str) -> None:
        self.python, told = python, "import platform; print(platform.python_version())"
        self.version = output([python, "-c", told], work).strip()
        self.work = work / self.version
        self.work.mkdir(exist_ok=True)
        pins = self.work / "pins.txt"
        pins.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in ("torch", "torchvision")))

    def made(self, name: str, packages: str, torch: bool = True) -> Path:
        """The interpreter of an environment with packages; `torch`: it sees torch, which is installed once."""
        python = self.work / name / "bin" / "python"
        if not python.exists():
            print(f"{name}: python -m pip install {packages}", flush=True)
            output([self.python, "-m", "venv", python.parents[1]], self.work)
            if torch:
                seen = output([self.made("torch", "torch", torch=False), "-c", PURELIB], self.work).strip()
                own = output([python, "-c", PURELIB], self.work).strip()
                Path(own, "torch.pth").write_text(f"{seen}\n")
            names = shlex.split(packages)
            output(
                [python, "-m", "pip", "install", "--quiet", "--constraint", self.work / "pins.txt", *names], self.work
            )
        return python


PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


def versions(python: Path, work: Path) -> dict[str, str]:
    """Name -> version of the packages that are told; the script ends if mclip-kit is among all of them."""
    listed = json.loads(output([python, "-m", "pip", "list", "--format", "json"], work))
    found = {package["name"].lower().replace("_", "-"): package["version"] for package in listed}
    if "mclip-kit" in found or not run([python, "-c", "import mclip_kit"], work).returncode:
        sys.exit(f"{python}: mclip-kit is there")
    return {name: found[key] for name in TOLD if (key := name.replace("_", "-")) in found}


def lines_of_use(folder: Path) -> tuple[str, str]:
    """What a card says to install, and its lines of Python with the path filled in."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    install = re.search(r"`python -m pip install (.+)`", card)
    lines = re.search(r"```python\n(.+?)```", card, re.DOTALL)
    if not install or not lines:
        sys.exit(f"{folder}: its card has no lines of use")
    return install[1], lines[1].replace("THIS_FOLDER", str(folder))


def last(done: subprocess.CompletedProcess[str]) -> str:
    """`ran`, or how a process failed."""
    return "ran" if not done.returncode else (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]


def exported(work: Path, write: Callable[[Path], Any]) -> Path:
    """A folder that is written, and moved."""
    folder = Path(tempfile.mkdtemp(dir=work))
    write(folder / "out")
    return (folder / "out").rename(folder / "moved")


def tried(model: Any, name: str, options: Mapping[str, Any], label: str, folder: Path, envs: Environments) -> Row:
    """Install, run, compare."""
    from PIL import Image

    from mclip_kit.interop import export as formats
    from mclip_kit.interop import parity

    elsewhere = Path(tempfile.mkdtemp(dir=envs.work))
    install, lines = lines_of_use(folder)
    python = envs.made(name, install, torch=name not in WITHOUT_TORCH)
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(elsewhere / "photo.jpg")
    if name == "diffusers":
        from tests.interop.models import stable_diffusion

        width = json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))["project_dim"]
        stable_diffusion(elsewhere / "ALT_DIFFUSION", width)
    (elsewhere / "use.py").write_text(lines, encoding="utf-8")
    done = run([python, "use.py"], elsewhere)
    row = Row(name, label, envs.version, versions(python, elsewhere), last(done), failed=bool(done.returncode))
    wanted, form = parity.samples(elsewhere), formats.find(name)
    chosen = {**form.options, **options}
    try:
        (theirs,) = parity.read(formats.module(name), [folder], wanted, str(python))
        found = parity.differences(parity.own(model, wanted, form.encode_text(model, chosen)), theirs)
        allowed = form.allowed(model, chosen)
        parity.check(form.library, found, allowed)
    except formats.CheckpointError as error:
        row.difference, row.failed = str(error), True
        return row
    row.difference = f"{max(found[group] for group in allowed):.0e}" if allowed else "told in the card"
    return row


def indexed(model: Any, captions: "Captions", label: str, folder: Path, envs: Environments) -> Row:
    """A clip-retrieval folder: its index by clip-retrieval's own command, and captions looked up in it."""
    work = Path(tempfile.mkdtemp(dir=envs.work))
    install, lines = lines_of_use(folder)
    python = envs.made("clip-retrieval", install)
    command = lines.splitlines()[0].removeprefix("# ").replace("INDEX", str(work / "index")).split()
    done = run([python.parent / command[0], *command[1:]], work)
    row = Row(
        "clip-retrieval", label, envs.version, versions(python, work), f"`{command[0]} {command[1]}` {last(done)}"
    )
    row.failed = bool(done.returncode)
    if done.returncode:
        return row
    rows_Q = captions.select("test")
    text_QD = model.encode_text(captions.texts[rows_Q].tolist()).numpy()
    np.save(work / "queries.npy", text_QD)
    (work / "look_up.py").write_text(LOOK_UP, encoding="utf-8")
    found = output([python, "look_up.py", "index", "queries.npy"], work).splitlines()
    images_G = captions.gallery("test")
    image_GD = model.encode_image([captions.open(image) for image in images_G.tolist()]).numpy()
    group_of = {captions.names[image]: captions.groups[image] for image in images_G.tolist()}
    found_Q = np.array([group_of[name] for name in found])
    exact_Q = captions.groups[images_G[(text_QD @ image_GD.T).argmax(1)]]
    right_Q = captions.groups[captions.images[rows_Q]]
    same = 100 * np.mean(found_Q == exact_Q)
    row.difference = (
        f"{same:.1f}% of {len(rows_Q):,} captions find the picture of an exact search first; it is the right one for "
        f"{100 * np.mean(found_Q == right_Q):.1f}%, in an exact search for {100 * np.mean(exact_Q == right_Q):.1f}%"
    )
    row.failed = same < 99
    return row


def main() -> None:
    """Try all, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tried_exports.md")
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.pop("PYTHONPATH", None)  # of the libraries' processes
    from mclip_kit.data.captions import read_captions
    from mclip_kit.interop import clip_retrieval
    from mclip_kit.interop.export import export, find
    from mclip_kit.models.multilingual_clip import load
    from tests import tiny
    from tests.interop.models import build

    lines, failed = [HEAD], False
    with tempfile.TemporaryDirectory() as temporary:
        work = (asked.work or Path(temporary, "work")).resolve()
        work.mkdir(parents=True, exist_ok=True)
        environments = [Environments(work, python) for python in asked.python]
        data = asked.data or tiny.corpus(Path(temporary, "data"))
        captions = read_captions(data)
        tries = [(name, *one) for name in asked.formats or TRIED for one in TRIED[name]]
        for name, kind, options in tries:
            if asked.model:
                model = load(asked.model, device="cpu")
                kind = f"{asked.model.parent.name}, {model.settings['projector']['kind']}"
            else:
                model = build(data, {"kind": kind, "pool": "cls"}, "none", 24, tiny.TEACHER)
            label = ", ".join([kind, *(f"{key}: {value}" for key, value in options.items())])
            if name == "clip-retrieval":
                folder = exported(work, partial(clip_retrieval.export, model, captions, source=asked.model))
                rows = [indexed(model, captions, label, folder, own) for own in environments]
            elif reason := find(name).misfit(model, {**find(name).options, **options}):
                rows = [Row(name, label, "", {}, f"refused: {reason}")]
            else:
                folder = exported(work, partial(export, model, name, source=asked.model, **options))
                rows = [tried(model, name, options, label, folder, own) for own in environments]
            for row in rows:
                packages = ", ".join(f"{package} {number}" for package, number in row.versions.items())
                lines.append(
                    f"| {row.name} | {row.label} | {row.python} | {packages} | {row.lines} | {row.difference} |"
                )
                print(lines[-1], flush=True)
                failed = failed or row.failed
    asked.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if failed:
        sys.exit("try_exports: something failed, see the table")


if __name__ == "__main__":
    main()
