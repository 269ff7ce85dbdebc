"""Steps whose loss or gradient is non-finite."""

import json
from pathlib import Path

import pytest

from mclip_kit.errors import DataError
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests.train.runs import recipe_of


def test_nonfinite_steps_are_skipped_then_end_the_run(squares: Path, tmp_path: Path) -> None:
    wild = ["stages.0.lr=1.0e+30", "stages.0.epochs=50", "stages.0.max_nonfinite=3"]
    message = r"stage 1/3 teacher: loss .* was non-finite \(NaN or inf\) in 3 steps up to step \d+;.*nonfinite\.jsonl"
    with pytest.raises(DataError, match=message):
        Run(recipe_of(squares, tmp_path, *wild), tmp_path / "run").go()
    skipped = [json.loads(line) for line in (tmp_path / "run" / "nonfinite.jsonl").read_text().splitlines()]
    assert len(skipped) >= 3
    assert all(len(row["rows"]) == 24 and row["stage"] == "teacher" for row in skipped)
    steps = [row["step"] for row in skipped]
    assert steps[-3:] == list(range(steps[-1] - 2, steps[-1] + 1))
    assert all(row["skipped"] == (row["step"] - 1 in steps) for row in read_log(tmp_path / "run") if "skipped" in row)
