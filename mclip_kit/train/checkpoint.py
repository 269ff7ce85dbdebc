"""The state of a run in one file, written whole or not at all; the newest ones of a run are kept."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_kit import __version__, layout
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import write_whole
from mclip_kit.models.safe_load import check_whole
from mclip_kit.storage import copy_object, fetch, forget, mark, names

OLDER = re.compile(r"last-([1-9][0-9]*)\.pt")


def versions() -> dict[str, str]:
    """Packages whose other versions may compute other digits."""
    return {"mclip_kit": __version__, **{name: _version(name) for name in ("torch", "transformers", "open_clip_torch")}}


@cache
def _version(name: str) -> str:
    """Of an installed package; a run asks at each checkpoint, and its metadata is long."""
    return version(name)


@dataclass
class TrainState:
    """A position in a run.

    The learning rate and every random draw (rows, dropout, augmentation) are functions of the recipe's seed, the stage
    and the step, so stage and step stand for the schedule and for all random generators.

    Attributes:
        stage, step: number of the stage, and how many of its steps are taken.
        model: every tensor of the model that some stage so far has trained, and buffers.
        module: tensors of the stage's module that are not the model's, such as learned temperatures.
        optimizer: state of the optimiser by names of parameters; None at a stage's start.
        scaler: state of the gradient scaler, with precision fp16.
        average: the moving average of the weights that the stage trains, if it has one.
        callbacks: what other callbacks need when the stage resumes: name of the class -> plain values and tensors.
        best: what is known of the stage's scores, see `callbacks.early_stopping`.
        languages: those that the student has been trained on.
        inputs: a hash of each prepared folder and of each tower's weights at the start of the run, by name.
        versions: of the packages that wrote it.
        processes: that shared its steps; 0 if it was written before this was kept.
    """

    stage: int = 0
    step: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    module: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, float] | None = None
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    processes: int = 0


def save(state: TrainState, path: Path, keep: int = 1) -> None:
    """Write a checkpoint, and keep the `keep` - 1 before it as last-1.pt (the newer), last-2.pt, ..."""
    with write_whole(path) as temporary:
        torch.save(vars(state), temporary)
        if path.name == Path(layout.LAST).name:
            _make_room(path, keep)


def _make_room(path: Path, keep: int) -> None:
    """Number older checkpoints on; the file that is written next takes the place of the newest."""
    for name in names(path.parent):
        found = OLDER.fullmatch(name)
        if found and int(found[1]) >= keep:
            path.with_name(name).unlink(missing_ok=True)
            forget(path.with_name(name))
    places = [path, *(path.with_name(f"last-{number}.pt") for number in range(1, keep))]
    for newer, older in reversed(list(pairwise(places))):
        if newer.is_file():
            mark(older)  # first: it is sent later if this process is killed between the two
            os.replace(newer, older)
            copy_object(newer, older)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints from which a run can resume, newest first."""
    last = folder / layout.LAST
    there = names(last.parent)
    numbers = [int(found[1]) for name in there if (found := OLDER.fullmatch(name))]
    older = [last.with_name(f"last-{number}.pt") for number in sorted(numbers)]
    return [path for path in (last, *older) if path.name in there]


def newest(folder: Path) -> tuple[TrainState, Path | None, list[str]]:
    """The newest whole checkpoint of a run, its file, and a line about each newer one that is damaged.

    Without any checkpoint it is the start of the run, and no file.

    Raises:
        CheckpointError: all are damaged.
    """
    found = checkpoints(folder)
    damaged: list[str] = []
    for path in found:
        try:
            return read(path), path, damaged
        except CheckpointError as error:
            damaged.append(str(error))
    if damaged:
        places = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"{damaged[0]}; no whole one is left, so remove {places} from {found[0].parent} to start the run again"
        )
    return TrainState(), None, []


def read(path: Path) -> TrainState:
    """Read a checkpoint; it holds tensors and plain values only. Entries that a later version adds are left out.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not fetch(path).is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        check_whole(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        if "scales" in content:  # of version 0.1.0
            content["module"] = {f"scales.{name}": scale for name, scale in content.pop("scales").items()}
        known = {entry.name for entry in fields(TrainState)}
        state = TrainState(**{"versions": {}} | {name: value for name, value in content.items() if name in known})
        problem = next(_problems(state), None)
    except Exception as error:  # torch.load raises what its many readers raise
        raise CheckpointError(f"{path}: damaged ({first_line(error)})") from None
    if problem:
        raise CheckpointError(f"{path}: damaged ({problem})")
    return state


def _problems(state: TrainState) -> Iterator[str]:
    """What is not of the kind that it should be."""
    if not all(isinstance(number, int) and number >= 0 for number in (state.stage, state.step, state.processes)):
        yield "its stage, step or processes is no number"
    for name in ("model", "module", "average"):
        tensors = getattr(state, name)
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            yield f"its entry {name!r} has more than tensors"
    for name in ("callbacks", "inputs", "versions"):
        if not isinstance(getattr(state, name), dict):
            yield f"its entry {name!r} is no table"
    if not all(value is None or isinstance(value, dict) for value in (state.optimizer, state.scaler, state.best)):
        yield "its optimiser, scaler or best score is no table"
    if not isinstance(state.languages, list) or not all(isinstance(code, str) for code in state.languages):
        yield "its languages are no codes"
