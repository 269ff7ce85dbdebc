"""A run that has lost something says what."""

from pathlib import Path
from typing import Any

import pytest

from mclip_kit.train.logging import Log
from mclip_kit.train.outcome import losses
from tests.train.runs import recipe_of


def log(folder: Path, stage: int, name: str, *scores: tuple[float, float]) -> None:
    """Write evaluations of a stage: score and English score."""
    writer = Log(folder, [], stage, 0)
    for step, (score, english) in enumerate(scores):
        writer.write(stage, name, step, {"score": score, "en_t2i_r1": english, "de_t2i_r1": 1.0})
        writer.write(stage, name, step, {"loss": 1.0})
    writer.close()


def lines_of(squares: Path, folder: Path, keep: str, *scores: tuple[float, float]) -> list[str]:
    changes: list[Any] = [f"evaluation.keep={keep}"]
    log(folder, 2, "contrast", *scores)
    return list(losses(folder, recipe_of(squares, folder, *changes)))


@pytest.mark.parametrize(
    ("keep", "scores", "said"),
    [
        ("last", [(10.0, 50.0), (30.0, 60.0)], []),
        ("last", [(50.0, 50.0), (60.0, 60.0), (44.0, 50.0)], ["worse than it began: score 44.0, 50.0 at its start"]),
        ("best", [(50.0, 50.0), (60.0, 60.0), (44.0, 44.0)], []),
        ("best", [(50.0, 80.0), (60.0, 71.0)], ["below its start in en: en_t2i_r1 71.0, 80.0 at its start"]),
        ("last", [(50.0, 80.0), (40.0, 71.0)], ["score 40.0, 50.0", "en_t2i_r1 71.0, 80.0"]),
        ("last", [(50.0, 80.0)], []),
    ],
)
def test_a_stage_below_its_start_is_named(
    keep: str, scores: list[tuple[float, float]], said: list[str], squares: Path, tmp_path: Path
) -> None:
    lines = lines_of(squares, tmp_path, keep, *scores)
    assert len(lines) == len(said)
    assert all(part in line and "stage contrast" in line for part, line in zip(said, lines, strict=True))


def test_english_of_a_student_that_a_stage_does_not_train_is_no_loss(squares: Path, tmp_path: Path) -> None:
    log(tmp_path, 0, "teacher", (10.0, 3.0), (30.0, 1.0))
    assert not list(losses(tmp_path, recipe_of(squares, tmp_path)))
