"""Whole runs of the tiny recipe, and what they leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import Run
from tests import tiny


def train(recipe: Recipe, folder: Path, resume: bool = False) -> Run:
    """Train with the evaluator that the command line gives."""
    torch.set_num_threads(1)  # as in the processes that tests start: bits are compared
    run = Run(recipe, folder, evaluator(recipe), resume)
    run.go()
    return run


def recipe_of(data: Path, folder: Path, *changes: str, **tree: Any) -> Recipe:
    """The tiny recipe with changes, written to folder/tiny.yaml."""
    return load(tiny.write_recipe(tiny.recipe(data) | tree, folder / "tiny.yaml"), changes)


def only_stage(data: Path, index: int) -> dict[str, Any]:
    """Changes of the tiny recipe that leave one of its stages, on a teacher that nothing trains."""
    tree = tiny.recipe(data)
    return {"stages": [tree["stages"][index]], "teacher": tree["teacher"] | {"weights": "random"}}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's model."""
    return load_model(folder / "model").state_dict()


def stamps(folder: Path) -> dict[Path, int]:
    """When each file of a run was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def losses(folder: Path) -> list[tuple[Any, ...]]:
    """Every logged loss: stage, step, loss."""
    return [(row["stage"], row["step"], row["loss"]) for row in read_log(folder) if "loss" in row]


def different(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same, bit for bit."""
    assert some.keys() == others.keys()
    return [name for name in some if not torch.equal(some[name], others[name])]


class Killed(Exception):
    """The machine went down."""


def killed_at(stage: int, step: int, kill: Callable[[], None]) -> type[Callback]:
    """A callback that kills the run after a step, before anything that comes after that step is saved.

    To be put first among `mclip_kit.train.callbacks.CALLBACKS`.
    """

    class Killer(Callback):
        at: Progress

        def after_step(self) -> None:
            if (self.at.index, self.at.step) == (stage, step):
                kill()

    return Killer


def train_until_killed(recipe: Path, folder: Path, stage: int, step: int) -> None:
    """Train in this process, resuming if there is a checkpoint; SIGKILL ends it after a step of a stage.

    To be run in a process of its own, see `tests.processes.run`.
    """
    import os
    import signal

    from mclip_kit.train import callbacks

    callbacks.CALLBACKS.insert(0, killed_at(stage, step, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    train(load(recipe), folder, resume=True)
