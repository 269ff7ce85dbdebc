"""The state of a run in one file, which is written atomically."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_kit import layout
from mclip_kit.config.model import AS_OPEN_CLIP
from mclip_kit.config.recipe import RENAMED, Recipe
from mclip_kit.config.yaml import parse, read_yaml, rename_keys
from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.files import write_whole


@dataclass
class TrainState:
    """A position in a run.

    Attributes:
        stage, step: number of the stage, and how many of its steps are taken.
        model: every tensor of the model that some stage so far has trained, and buffers.
        module: tensors of the stage's module that are not the model's, such as learned temperatures.
        optimizer: state of the optimiser by names of parameters; None at a stage's start.
        average: the moving average of the weights that the stage trains, if it has one.
        callbacks: what other callbacks need when the stage resumes: name of the class -> plain values and tensors.
        best: what is known of the stage's scores, see `callbacks.early_stopping`.
        languages: those that the student has been trained on.
    """

    stage: int = 0
    step: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    module: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, float] | None = None
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)


def save(state: TrainState, path: Path) -> None:
    """Write a checkpoint."""
    with write_whole(path) as temporary:
        torch.save(vars(state), temporary)


def read(path: Path) -> TrainState:
    """Read a checkpoint; it holds tensors and plain values only.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if "scales" in content:  # of version 0.1.0
            content["module"] = {f"scales.{name}": scale for name, scale in content.pop("scales").items()}
        return TrainState(**content)
    except Exception as error:  # torch.load raises what its many readers raise
        raise CheckpointError(f"{path}: damaged ({first_line(error)}); remove it to start again") from None


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """CheckpointError if a folder holds a run that is not to be resumed, or one of another recipe."""
    written = folder / layout.RECIPE
    if not written.is_file() or not (folder / layout.LAST).is_file():
        return  # a run that saved nothing, such as one that failed at once, starts again
    if not resume:
        raise CheckpointError(f"{folder}: holds a run already; add --resume to continue it, or choose another --out")
    tree = read_yaml(written)
    rename_keys(tree, RENAMED)  # of an earlier version
    started = parse(tree, Recipe, str(written))  # with the defaults of keys that are newer than the run
    if "text_cleaning" not in tree and started.text_cleaning:
        started.text_cleaning, started.pictures = "none", AS_OPEN_CLIP  # what runs did before the keys
    before, now = (_flat(one.model_dump(mode="json")) for one in (started, recipe))
    differ = (key for key in before | now if before.get(key) != now.get(key))
    changed = sorted(key for key in differ if not key.startswith("cache."))  # where features lie is no part of a run
    if changed:
        inputs = [f"--set {key}={before[key]}" for key in changed if key.startswith(("pictures", "text_cleaning"))]
        again = f", or continue it with {' '.join(inputs)}" if len(inputs) == len(changed) else ""
        raise CheckpointError(
            f"{folder}: was started with another recipe; different keys: {', '.join(changed)}; choose another "
            f"--out{again}"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    return {k: v for key, part in items for k, v in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()}
