"""What a run leaves to read: metrics.jsonl, and curves for TensorBoard or Weights & Biases."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mclip_kit.errors import RecipeError
from mclip_kit.files import locked, write_text


class Log:
    """Appends rows to RUN/metrics.jsonl, and numbers to the trackers that are asked for.

    Args:
        folder: the run.
        trackers: `tensorboard` (RUN/tensorboard), `wandb` (RUN/wandb, and its server unless WANDB_MODE=offline).
        stage, step: the steps that are taken; rows of later ones, of an interrupted attempt, are dropped.
    Raises:
        RecipeError: wandb is asked for and is not installed, or cannot start.
    """

    def __init__(self, folder: Path, trackers: Sequence[str], stage: int, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        kinds: dict[str, type[TensorBoard | Wandb]] = {"tensorboard": TensorBoard, "wandb": Wandb}
        self._trackers = [kinds[name](folder) for name in trackers]
        last = (stage, step) if step else (stage, -1)  # at a stage's start, step 0 is evaluated anew
        rows = [row for row in read_log(folder) if (row["stage_index"], row["step"]) <= last]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, stage_index: int, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append one row; numbers also go to the trackers, under the stage's name."""
        row = {"stage_index": stage_index, "stage": stage, "step": step, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.write(stage, step, numbers)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class TensorBoard:
    """Curves in RUN/tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """One step's numbers."""
        for name, value in numbers.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._board.close()


class Wandb:
    """Curves of Weights & Biases; a run that is gone on with is the same run there."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ModuleNotFoundError:
            raise RecipeError("trackers: wandb is not installed: pip install 'mclip-kit[wandb]'") from None
        place = str(folder.resolve())
        same = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
        try:
            self._run = wandb.init(project="mclip_kit", name=folder.name, id=same, dir=place, resume="allow")
        except wandb.Error as error:
            raise RecipeError(f"trackers: wandb cannot start ({error}); try WANDB_MODE=offline") from None

    def write(self, stage: str, step: int, numbers: dict[str, float]) -> None:
        """One step's numbers; each stage counts its own steps."""
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        """Flush and close."""
        self._run.finish()


def note_skipped(folder: Path, stage: str, step: int, rows: np.ndarray) -> None:
    """Keep which rows made a loss or gradient that is no finite number, in RUN/nonfinite.jsonl."""
    with open(folder / "nonfinite.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps({"stage": stage, "step": step, "rows": rows.tolist()}) + "\n")


def report_unreadable(folder: Path, path: Path) -> None:
    """Name a picture that is left out, once a run, on the terminal and in RUN/unreadable.txt."""
    listed = folder / "unreadable.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=True):  # of a live tower, each process sees pictures of its own
        known = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
        if str(path) not in known:
            tqdm.write(f"{path}: not a readable picture; it is left out")
            write_text(listed, "".join(f"{line}\n" for line in [*known, str(path)]))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
