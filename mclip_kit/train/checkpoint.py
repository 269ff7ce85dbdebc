"""Where a run stands, in one file that is written whole or not at all."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
