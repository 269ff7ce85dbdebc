"""Embed samples with exported folders, in a process that has never seen this package (`parity.py` starts it).

Arguments: a reader's file; a JSON file of samples, {"text": {group: [text]}, "picture": {group: [path]}}; the folder to
write N.npz to, one a folder, with an array a group; the folders. An error ends it with one line.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(reader: str, samples: str, out: str, *folders: str) -> None:
    """Embed all groups with each folder."""
    sys.modules["mclip_kit"] = None  # type: ignore[assignment]  # importing it is an error
    load = runpy.run_path(reader)["load"]
    groups = json.loads(Path(samples).read_text(encoding="utf-8"))
    for number, folder in enumerate(folders):
        encode = dict(zip(("text", "picture"), load(folder), strict=True))
        found: dict[str, Any] = {
            group: np.asarray(encode[kind](items), np.float32)
            for kind, by_group in groups.items()
            if encode[kind] is not None
            for group, items in by_group.items()
        }
        np.savez(Path(out) / f"{number}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
