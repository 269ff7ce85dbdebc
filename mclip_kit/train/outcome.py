"""What a run has lost: stages that ended below their start, by the score or in the teacher's language."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import STUDENT, Stage
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.train.logging import read_log


def losses(folder: Path, recipe: Recipe) -> Iterator[str]:
    """A line about each stage that ended below its start, and about each whose teacher's language did.

    Args:
        folder: of the run; its log has the scores.
        recipe: says which weights a stage ends with.
    """
    keep = recipe.evaluation.keep if recipe.evaluation else "last"
    rows = [row for row in read_log(folder) if "score" in row]
    for index, stage in enumerate(recipe.stages):
        own = [row for row in rows if row["stage_index"] == index]
        if len(own) > 1:
            best = max(own, key=lambda row: row["score"])  # of equal scores the first
            yield from _lower(stage, own[0], best if keep == "best" else own[-1])


def _lower(stage: Stage, start: dict[str, Any], end: dict[str, Any]) -> Iterator[str]:
    began = f"warning: stage {stage.name} ended"
    if end["score"] < start["score"]:
        scores = f"score {end['score']:.1f}, {start['score']:.1f} at its start"
        yield f"{began} worse than it began: {scores}; lower lr, or set evaluation.keep=best"
    if any(stage.trains(tower) for tower in (*STUDENT, "lora")):
        for name in start:
            if name.startswith(f"{TEACHER_LANGUAGE}_") and end.get(name, start[name]) < start[name]:
                scores = f"{name} {end[name]:.1f}, {start[name]:.1f} at its start"
                yield f"{began} below its start in {TEACHER_LANGUAGE}: {scores}"
