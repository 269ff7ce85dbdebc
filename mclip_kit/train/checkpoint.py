"""Where a run stands, in one file that is written whole or not at all."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mclip_kit.config.recipe import Recipe, dump
from mclip_kit.config.yaml import read_yaml
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import write_whole


@dataclass
class State:
    """A position in a run.

    Attributes:
        stage, step: the next step to take.
        model: every tensor of the model that some stage so far has trained, and buffers.
        scales: learned temperatures of the stage's edges.
        optimizer: its state dict; None at a stage's start.
        average: the moving average of the weights that the stage trains, if it has one.
        best: the best score of the stage so far, and the step it was seen at.
        languages: those that the student has been trained on.
    """

    stage: int
    step: int
    model: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, float] | None = None
    languages: list[str] = field(default_factory=list)


def save(state: State, path: Path) -> None:
    """Write a checkpoint."""
    with write_whole(path) as temporary:
        torch.save(asdict(state), temporary)


def read(path: Path) -> State:
    """Read a checkpoint; it holds tensors and plain values only.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return State(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises what its many readers raise
        raise CheckpointError(f"{path}: damaged ({first_line(error)}); remove it to start anew") from None


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """CheckpointError if a folder holds a run that is not to be gone on with, or one of another recipe."""
    written = folder / "recipe.yaml"
    if not written.is_file() or not (folder / "checkpoints" / "last.pt").is_file():
        return  # a run that saved nothing, such as one that failed at once, is started anew
    if not resume:
        raise CheckpointError(f"{folder}: holds a run already; go on with --resume, or choose another --out")
    before, now = _flat(read_yaml(written)), _flat(yaml.safe_load(dump(recipe)))
    differ = (key for key in before | now if before.get(key) != now.get(key))
    changed = sorted(key for key in differ if not key.startswith("cache."))  # where features lie is no part of a run
    if changed:
        raise CheckpointError(
            f"{folder}: was started with another recipe; what differs: {', '.join(changed)}; choose another --out"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    return {k: v for key, part in items for k, v in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()}
