"""Processes share the work of filling the cache, and train as one would."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.train.logging import read_log
from tests import processes, tiny


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run) if "loss" in row]


def keys(features: Path) -> dict[str, list[bytes]]:
    """Table -> the keys of all its rows."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(features.glob("*/*/keys.bin")):
        found.setdefault(path.parents[1].name, []).extend(
            row.tobytes() for row in np.fromfile(path, "<u8").reshape(-1, 2)
        )
    return found


def test_two_processes_fill_and_train_as_one(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = tree["encoder"]["weights"] = "random"
    tree["encoder"]["dropout"] = 0.0  # each process draws its own
    tree |= {"projector": {"kind": "transformer", "layers": 1, "pool": "eos"}, "clip_projector": "linear"}
    distill = {"teacher_text-student_text": {"loss": "contrastive", "weight": 0.1}}
    stage = tree["stages"][2] | {"train": ["projector", "clip_projector"], "epochs": 3}
    tree |= {"stages": [stage | {"edges": stage["edges"] | distill}], "cache": {"features": "tokens", "dtype": "fp32"}}
    recipe = tiny.write_recipe(tree, tmp_path / "tiny.yaml")
    for name, count in (("one", 1), ("two", 2)):
        assert processes.train(recipe, tmp_path / name / "run", count).count("done; score it with") == 1
    one, two = (keys(tmp_path / name / "features") for name in ("one", "two"))
    assert sorted(name.split("-")[0] for name in one) == ["image", "teacher", "tokens"]
    assert {name: sorted(rows) for name, rows in two.items()} == {name: sorted(rows) for name, rows in one.items()}
    assert all(len(set(rows)) == len(rows) for rows in two.values())
    assert not list(tmp_path.rglob("*.part"))
    assert losses(tmp_path / "two" / "run") == pytest.approx(losses(tmp_path / "one" / "run"), rel=1e-5)
