"""The pictures of confused pairs, read from the prepared folders that were evaluated."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mclip_kit.data.captions import read_captions
from mclip_kit.errors import MclipError
from mclip_kit.evaluate.qualitative import small_picture
from mclip_kit.evaluate.report.results import Report


def confused_pictures(reports: Sequence[Report]) -> tuple[dict[tuple[str, str], np.ndarray], list[str]]:
    """(prepared folder, name) -> picture, uint8 (S, S, 3); and a line for each folder that cannot be read any more."""
    wanted: dict[str, set[str]] = {}
    for report in reports:
        for pair in report.results["confusions"]:
            wanted.setdefault(pair["folder"], set()).update((pair["picture"], pair["found"]))
    pictures: dict[tuple[str, str], np.ndarray] = {}
    lines = []
    for folder, names in wanted.items():
        try:
            captions = read_captions(Path(folder))
            rows = [row for row, name in enumerate(captions.names) if str(name) in names]
            pictures |= {(folder, str(captions.names[row])): small_picture(captions, row) for row in rows}
        except (MclipError, OSError) as error:
            lines.append(f"{folder}: its pictures are not shown: {error}")
    return pictures, lines
