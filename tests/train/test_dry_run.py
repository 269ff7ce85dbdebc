"""What a run will take, measured before it starts."""

from pathlib import Path

from mclip_kit.train.run import Run
from tests.train.runs import recipe_of


def test_a_dry_run_measures_every_stage_and_writes_nothing(squares: Path, tmp_path: Path) -> None:
    lines = list(Run(recipe_of(squares, tmp_path), tmp_path / "run").dry_run())
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["teacher", "distill", "contrast"]
    assert sum("activations of 24 rows" in line for line in lines) == 3
    assert any("features, teacher texts" in line for line in lines)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "features").exists()
