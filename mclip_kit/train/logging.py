"""The log of a run: metrics.jsonl, and accelerate's trackers for TensorBoard and Weights & Biases."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from mclip_kit import layout
from mclip_kit.data.images import container
from mclip_kit.disk import disk_errors
from mclip_kit.errors import RecipeError
from mclip_kit.files import write_text
from mclip_kit.locks import locked
from mclip_kit.progress import tqdm
from mclip_kit.storage import exists, fetch, mark, send
from mclip_kit.urls import named


class Log:
    """Appends rows to RUN/metrics.jsonl, and numbers to the trackers that are asked for.

    Args:
        folder: the run.
        trackers: `tensorboard` (RUN/tensorboard), `wandb` (RUN/wandb, and its server unless WANDB_MODE=offline).
        stage, step: the steps that are taken; rows of later steps, which will be taken again, are dropped.
    Raises:
        RecipeError: wandb is asked for and is not installed, or cannot start.
    """

    def __init__(self, folder: Path, trackers: Sequence[str], stage: int, step: int) -> None:
        self.path = folder / layout.METRICS
        self._trackers = [TRACKERS[name](folder) for name in trackers]
        for tracker in self._trackers:
            tracker.start()
        last = (stage, step) if step else (stage, -1)  # at a stage's start, step 0 is evaluated again
        rows = [row for row in read_log(folder) if (row["stage_index"], row["step"]) <= last]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, stage_index: int, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append one row; numbers also go to the trackers, under the stage's name."""
        row = {"stage_index": stage_index, "stage": stage, "step": step, **values}
        with disk_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        mark(self.path)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log({f"{stage}/{name}": value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        for tracker in self._trackers:
            tracker.finish()
        self.send()

    def send(self) -> None:
        """Send what is logged so far, if the run is in object storage."""
        send(self.path)
        send(self.path.with_name(layout.TENSORBOARD))


class _WandB(WandBTracker):
    """Curves of Weights & Biases; a run that resumes is the same run there."""

    def __init__(self, folder: Path) -> None:
        place = str(folder.resolve())
        same = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:16]
        super().__init__("mclip_kit", name=folder.name, id=same, dir=place, resume="allow")

    def start(self) -> None:
        """Start the run there; RecipeError if wandb is not installed, or cannot start."""
        try:
            import wandb
        except ModuleNotFoundError:
            raise RecipeError("trackers: wandb is not installed: pip install 'wandb>=0.19'") from None
        try:
            super().start()
        except wandb.Error as error:
            raise RecipeError(f"trackers: wandb cannot start ({error}); try WANDB_MODE=offline") from None

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Log values under names `STAGE/NAME`; each stage counts its own steps."""
        for stage in {name.partition("/")[0] for name in values}:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            values = {f"{stage}/step": step, **values}
        super().log(values)


TRACKERS: dict[str, Callable[[Path], GeneralTracker]] = {
    "tensorboard": lambda folder: TensorBoardTracker(layout.TENSORBOARD, folder),
    "wandb": _WandB,
}
"""Name in a recipe -> tracker of a run folder."""


def report_unreadable(folder: Path, path: Path) -> None:
    """Name a picture that is left out, once a run, on the terminal and in RUN/unreadable.txt."""
    listed = folder / layout.UNREADABLE
    folder.mkdir(parents=True, exist_ok=True)
    with locked(listed, wait=True):  # each process reads its own pictures
        known = listed.read_text(encoding="utf-8").splitlines() if fetch(listed, again=True).is_file() else []
        if named(path) not in known:
            why = "not a readable picture" if exists(container(path)) else "no such file"
            tqdm.write(f"{path}: {why}; it is left out")
            write_text(listed, "".join(f"{line}\n" for line in [*known, named(path)]))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut off by a crash is left out."""
    path = fetch(folder / layout.METRICS)
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return rows
