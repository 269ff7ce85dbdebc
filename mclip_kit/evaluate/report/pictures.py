"""The pictures of confused pairs, read from the prepared folders that were evaluated."""

from collections.abc import Iterator, Sequence

import numpy as np

from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.manifest import identity
from mclip_kit.errors import DataError, MclipError
from mclip_kit.evaluate.qualitative import small_picture
from mclip_kit.evaluate.report.results import Report
from mclip_kit.storage import place

Shown = dict[tuple[str, str], np.ndarray]
"""(prepared folder, name) -> picture, uint8 (S, S, 3)."""


def confused_pictures(reports: Sequence[Report]) -> tuple[Shown, list[str]]:
    """The pictures; and a line for each that cannot be read any more, and for each folder that is another one now."""
    wanted: dict[str, set[str]] = {}
    for report in reports:
        for pair in report.results["confusions"]:
            wanted.setdefault(pair["folder"], set()).update((pair["picture"], pair["found"]))
    shown: Shown = {}
    lines: list[str] = []
    for folder, names in wanted.items():
        try:
            captions = read_captions(folder)
            if any(identity(place(folder)) != known for known in _identities(reports, folder)):
                raise DataError("it was prepared again since the evaluation")
            _read(captions, names, folder, shown, lines)
        except (MclipError, OSError) as error:
            lines.append(f"{folder}: its pictures are not shown: {error}")
    return shown, lines


def _read(captions: Captions, names: set[str], folder: str, shown: Shown, lines: list[str]) -> None:
    for row, name in enumerate(map(str, captions.names)):
        if name in names:
            try:
                shown[folder, name] = small_picture(captions, row)
            except (MclipError, OSError) as error:
                lines.append(f"{name} is not shown: {error}")


def _identities(reports: Sequence[Report], folder: str) -> Iterator[str]:
    """What evaluations recorded of a prepared folder, see `reproduce.hashes`; earlier versions recorded nothing."""
    for report in reports:
        for about in report.results["evaluations"]:
            known = (about.get("hashes") or {}).get(about["data"])
            if known and about.get("folder") == folder:
                yield str(known)
