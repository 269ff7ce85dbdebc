"""What a run leaves to read: metrics.jsonl and TensorBoard."""

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mclip_kit.files import write_text


class Log:
    """Appends rows to RUN/metrics.jsonl and to RUN/tensorboard.

    Args:
        folder: the run.
        stage, step: the steps that are taken; rows of later ones, of an interrupted attempt, are dropped.
    """

    def __init__(self, folder: Path, stage: int, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        last = (stage, step) if step else (stage, -1)  # at a stage's start, step 0 is evaluated anew
        rows = [row for row in read_log(folder) if (row["stage_index"], row["step"]) <= last]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, stage_index: int, stage: str, step: int, values: dict[str, Any]) -> None:
        """Append one row; numbers also go to TensorBoard, under the stage's name."""
        row = {"stage_index": stage_index, "stage": stage, "step": step, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that was cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
