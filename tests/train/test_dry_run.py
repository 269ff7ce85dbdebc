"""What a run will take, measured before it starts; and that it is refused where training would be."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from click.testing import CliRunner

from mclip_kit.cli import cli
from mclip_kit.config.recipe import dump
from mclip_kit.errors import DataError
from mclip_kit.features.filling import NoRoom
from mclip_kit.layout import LAST, RECIPE
from mclip_kit.train.run import Run
from tests import tiny
from tests.train.runs import only_stage, recipe_of

UNITS = {"MB": 1e6, "GB": 1e9}


def test_a_dry_run_measures_every_stage_and_writes_nothing(squares: Path, tmp_path: Path) -> None:
    before = psutil.Process().memory_info().rss
    changes = "stages.1.warmup_steps=500", "stages.1.ema=0.9"
    lines = list(Run(recipe_of(squares, tmp_path, *changes), tmp_path / "run").dry_run())
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["teacher", "distill", "contrast"]
    assert sum("activations of 24 rows" in line for line in lines) == 3
    assert any("features, teacher texts" in line for line in lines)
    assert sum("warmup_steps 500: in " in line for line in lines) == 1
    for line in (line for line in lines if "memory: " in line):
        number, unit = line.partition("memory: ")[2].split()[:2]
        assert float(number) * UNITS[unit] > 0.9 * before
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "features").exists()


def test_features_that_the_disk_has_no_room_for(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(squares, tmp_path, "cache=pooled", **only_stage(squares, 1))
    run = Run(recipe, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=1, used=1, free=1))
    with pytest.raises(NoRoom, match=r"stage distill: features would take .* set cache.folder"):
        list(run.dry_run())


def test_batches_that_no_row_fills(squares: Path, tmp_path: Path) -> None:
    run = Run(recipe_of(squares, tmp_path, "stages.0.batch_size=500", **only_stage(squares, 1)), tmp_path / "run")
    with pytest.raises(DataError, match="rows are too few for a batch of 500; lower batch_size"):
        list(run.dry_run())


def test_a_folder_that_holds_a_run_is_refused_as_by_train(squares: Path, tmp_path: Path) -> None:
    recipe = recipe_of(squares, tmp_path)
    (tmp_path / "run" / LAST).parent.mkdir(parents=True)
    (tmp_path / "run" / LAST).touch()
    (tmp_path / "run" / RECIPE).write_text(dump(recipe), encoding="utf-8")
    path = tiny.write_recipe(tiny.recipe(squares), tmp_path / "tiny.yaml")
    found = CliRunner().invoke(cli, ["train", str(path), "--out", str(tmp_path / "run"), "--dry-run"])
    assert found.exit_code == 2
    assert "holds a run already" in found.output
