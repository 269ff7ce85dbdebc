"""Every head, pool and clip projector, in every format: exact, or refused with the reason.

`test_formats.py` checks it, and `docs/make_exports.py` writes it into docs/exports.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from mclip_kit.interop import parity
from mclip_kit.interop.export import find, module
from mclip_kit.models.multilingual_clip import MultilingualClip
from tests import tiny
from tests.interop.models import build

WIDTH = 24
"""Of the encoder; the CLIP's embeddings have 16 numbers."""
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "mlp with noise": {"kind": "mlp", "noise": 0.1},
    "mlp with noise, hidden: 13": {"kind": "mlp", "noise": 0.1, "hidden": 13},
    "altclip": {"kind": "altclip"},
    "transformer": {"kind": "transformer", "layers": 2},
}
POOLS = ("cls", "mean", "eos")
CLIP_PROJECTORS = ("none", "linear")


class Cell(NamedTuple):
    """A kind of student."""

    head: str
    pool: str
    clip_projector: str


@dataclass(frozen=True)
class Outcome:
    """What a format does with a student: why it is refused, or group of samples -> largest difference."""

    reason: str | None
    differences: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest difference among the texts and pictures that every library reads alike."""
        return max(self.differences[group] for group in ("texts", "pictures") if group in self.differences)


def students(data: Path) -> dict[Cell, MultilingualClip]:
    """A tiny model of each kind; `data` is the tiny corpus."""
    return {
        Cell(head, pool, clip_projector): build(
            data, {**HEADS[head], "pool": pool}, clip_projector, WIDTH, tiny.TEACHER
        )
        for head, pool, clip_projector in product(HEADS, POOLS, CLIP_PROJECTORS)
    }


def tried(name: str, models: Mapping[Cell, MultilingualClip], folder: Path) -> dict[Cell, Outcome]:
    """Write, move, read and compare all students in a format; one process of its library reads all folders.

    Raises:
        CheckpointError: the library cannot read a folder, or its embeddings differ by more than the format allows.
    """
    form = find(name)
    found, places = {}, {}
    for number, (cell, model) in enumerate(models.items()):
        reason = form.misfit(model, form.options)
        if reason:
            found[cell] = Outcome(reason, {})
            continue
        written = folder / f"{number}.written"
        written.mkdir(parents=True)
        form.write(model, written, form.options)
        places[cell] = written.rename(folder / str(number))
    wanted = parity.samples(folder)
    read = parity.read(module(name), list(places.values()), wanted)
    for cell, theirs in zip(places, read, strict=True):
        ours = parity.own(models[cell], wanted, form.encode_text(models[cell], form.options))
        differences = parity.differences(ours, theirs)
        parity.check(form.library, differences, form.allowed(models[cell], form.options))
        found[cell] = Outcome(None, differences)
    return found
