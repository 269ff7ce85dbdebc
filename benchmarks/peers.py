"""Environments of the programs that we are compared with: build/peers/NAME, each made from the registry.

    python benchmarks/peers.py [NAME ...] [--again]

An environment has what the peer's own declaration asks for, in the versions that it asks for; whatever of that is in
the environment of this interpreter with a fitting version is taken from there, torch above all. So both sides compute
with the same torch where the peer allows it, nothing of ours is changed, and no peer disturbs another. A peer that
cannot be installed is named, and the others are kept; where a benchmark finds no such environment, it takes the peer
from ours, where `make install` has put most of them.
"""

import argparse
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "peers"
PEERS = {
    "sentence-transformers": ("sentence_transformers", ["sentence-transformers[train]>=6"]),
    "clip-benchmark": ("clip_benchmark", ["clip-benchmark>=1.6.2,<2"]),
    "clip-retrieval": ("clip_retrieval", ["clip-retrieval>=2.45"]),
    "open_clip": ("open_clip_train.train", ["open_clip_torch[training]>=3.3,<4"]),
    "fairseq": ("fairseq_cli.preprocess", ["ve-fairseq==0.12.3"]),
}
"""Name -> the module that must be importable, and what is installed."""
READY = "ready.txt"  # written last: what was installed


def python(name: str | None) -> str:
    """The interpreter that has a peer: that of its environment, or this one."""
    place = FOLDER / (name or "")
    return str(place / "bin" / "python") if name and (place / READY).is_file() else sys.executable


def make(name: str) -> str | None:
    """Make the environment of a peer; why it could not be made, or None."""
    module, packages = PEERS[name]
    place = FOLDER / name
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, symlinks=True)
    own = place / "bin" / "python"
    ours = "; ".join(f"site.addsitedir({folder!r})" for folder in site.getsitepackages())
    found = subprocess.run(
        [own, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True
    )
    Path(found.stdout.strip(), "ours.pth").write_text(f"import site; {ours}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(own), "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if not done.returncode:
        done = subprocess.run([own, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr or done.stdout).strip().splitlines()[-1]
    (place / READY).write_text("\n".join([*packages, ""]), encoding="utf-8")
    return None


def missing() -> list[str]:
    """Peers without an environment."""
    return [name for name in PEERS if not (FOLDER / name / READY).is_file()]


def main() -> None:
    """Make what is missing, and name what could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--again", action="store_true", help="also those that are there")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in PEERS]
    if unknown:
        parser.error(f"no peer {', '.join(unknown)}; there are: {', '.join(PEERS)}")
    for name in [name for name in asked.names or PEERS if asked.again or name in missing()]:
        print(f"{name}: ", end="", flush=True)
        reason = make(name)
        print(f"could not be installed: {reason}" if reason else "ready")


if __name__ == "__main__":
    main()
