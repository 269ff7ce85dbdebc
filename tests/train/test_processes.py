"""Two gloo processes with half a batch each train as one process with the whole."""

from pathlib import Path
from typing import Any

import pytest

from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.logging import read_log
from tests import processes, tiny

ROWS = 32


def stages() -> list[dict[str, Any]]:
    """MSE and contrastive losses, of whole batches and in parts; more than twenty steps each."""
    one = {"epochs": 4, "batch_size": ROWS, "lr": 2e-3, "train": ["student"], "clip_norm": 1.0}
    mse = one | {"data": "bitext", "edges": {"teacher_text-student_text": {"loss": "mse"}}}
    contrast = {"image-student_text": {"loss": "contrastive", "learned": True}}
    teacher = {"teacher_text-student_text": {"loss": "contrastive", "weight": 0.1}}
    captions = one | {"data": "captions"}
    return [
        mse | {"name": "mse"},
        mse | {"name": "mse_in_parts", "micro_batch": 8},
        captions | {"name": "contrast", "edges": contrast},
        captions | {"name": "contrast_in_parts", "edges": contrast | teacher, "micro_batch": 8},
    ]


def test_two_processes_train_as_one(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    tree["teacher"]["weights"] = "random"
    tree["encoder"]["dropout"] = 0.0  # each process draws its own
    del tree["evaluation"]
    recipe = tiny.write_recipe(tree | {"stages": stages(), "cache": {"dtype": "fp32"}}, tmp_path / "tiny.yaml")
    for name, count in (("one", 1), ("two", 2)):
        processes.train(recipe, tmp_path / name / "run", count)
    one, two = ([row for row in read_log(tmp_path / name / "run") if "loss" in row] for name in ("one", "two"))
    assert {row["stage"] for row in one} == {stage["name"] for stage in stages()}
    for stage in {row["stage"] for row in one}:
        pairs = [(a, b) for a, b in zip(one, two, strict=True) if a["stage"] == stage and a["step"] <= 20]
        assert len(pairs) >= 2
        for a, b in pairs:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), (stage, a["step"])


def test_torchrun_starts_the_command(squares: Path, tmp_path: Path) -> None:
    """The other tests fork their ranks from a warm process (tests/processes.py)."""
    tree = tiny.recipe(squares)
    tree |= {"stages": tree["stages"][2:], "evaluation": None, "cache": "off"}
    tree["teacher"]["weights"] = "random"
    recipe = tiny.write_recipe(tree, tmp_path / "tiny.yaml")
    done = processes.torchrun(2, "train", str(recipe), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done; score it with") == 1
    assert load_model(tmp_path / "run" / "model").trained_languages == ["de", "en", "fr"]
