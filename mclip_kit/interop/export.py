"""Formats that a model leaves in, and the one way out: written, moved, read by the other library, compared, kept.

A format is a module of this package with a constant `FORMAT`.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mclip_kit.errors import CheckpointError
from mclip_kit.files import check_new, new_folder, temporary_folder
from mclip_kit.interop.card import Export, write_card
from mclip_kit.storage import place

if TYPE_CHECKING:  # the command line lists the formats without torch
    from mclip_kit.interop.parity import Embeddings
    from mclip_kit.models.multilingual_clip import MultilingualClip

FORMATS = ("open-clip", "sentence-transformers", "transformers", "onnx", "diffusers")
"""Names of formats; a format's module here, and its file in `readers/`, have its name with underscores."""

Options = Mapping[str, Any]
"""A format's own options, such as `tower` of open-clip."""


class Exported(NamedTuple):
    """What an export found.

    Attributes:
        differences: group of samples -> the largest difference between the library's embeddings and the model's.
        notes: what the library does otherwise than the model, and what options such as int8 cost; a sentence each.
    """

    differences: dict[str, float]
    notes: list[str]


@dataclass(frozen=True)
class Format:
    """What is known of a format.

    Attributes:
        library: what reads it, as people call it.
        packages: modules that must be importable to write and to compare it; `extra` installs them.
        extra: of mclip-kit in setup.py; empty: always installed.
        misfit: why a model does not fit, in one sentence; None if it does.
        write: writes the folder, which exists and is empty.
        allowed: group of samples -> the largest difference that is kept. Other groups are measured and told.
        notes: what the library does otherwise than the model; a sentence each.
        measured: more sentences, from the options and the model's and the library's embeddings of the samples.
        install: what the lines of use need, as pip takes it; `library` if empty.
        use: lines of Python that use the folder, with its path in place of {folder}; or a function that gives them.
        encode_text: the model's side of the comparison; the student by default.
    """

    library: str
    packages: tuple[str, ...]
    misfit: Callable[["MultilingualClip", Options], str | None]
    write: Callable[["MultilingualClip", Path, Options], None]
    allowed: Callable[["MultilingualClip", Options], dict[str, float]]
    hub: tuple[str, str]
    """The hub's `library_name` and `pipeline_tag`."""
    use: str | Callable[["MultilingualClip", Options], str]
    extra: str = ""
    install: str = ""
    notes: Callable[["MultilingualClip", Options], list[str]] = lambda model, options: []
    measured: Callable[[Options, "Embeddings", "Embeddings"], list[str]] = lambda options, ours, theirs: []
    encode_text: Callable[["MultilingualClip", Options], Callable[[list[str]], Any]] = lambda model, options: (
        model.encode_text
    )
    width: Callable[[Options], int | None] = lambda options: None
    """To how many numbers the library cuts embeddings; None: it does not."""
    options: Options = field(default_factory=dict)
    """The options' defaults."""

    def lines(self, model: "MultilingualClip", options: Options) -> str:
        """`use` for a model and options."""
        return (self.use if isinstance(self.use, str) else self.use(model, options)).strip()

    @property
    def missing(self) -> str | None:
        """What to install before this format can be written, in one sentence; None: nothing."""
        if all(importlib.util.find_spec(package) for package in self.packages):
            return None
        return (
            f"{self.library} is needed to write and compare this format: run, in mclip-kit's checkout, "
            f"python -m pip install -e '.[{self.extra}]'"
        )


def module(name: str) -> str:
    """The name of a format's module here, and of its file in `readers/`."""
    return name.replace("-", "_")


def find(name: str) -> Format:
    """A format by its name in `FORMATS`."""
    found: Format = importlib.import_module(f"mclip_kit.interop.{module(name)}").FORMAT
    return found


def misfits(model: "MultilingualClip") -> dict[str, str | None]:
    """Each format -> why the model does not fit it; None: it fits exactly."""
    found = {}
    for name in FORMATS:
        form = find(name)
        found[name] = form.misfit(model, form.options)
    return found


def export(
    model: "MultilingualClip", name: str, folder: str | Path, source: Path | None = None, **options: Any
) -> Exported:
    """Write a model in a format, have its library read it, compare, and keep the folder only if it holds.

    >>> from mclip_kit.interop.export import export
    >>> found = export(model, "open-clip", "models/open_clip")
    >>> found.differences["texts"] < 1e-5
    True

    Args:
        model: on the CPU, float32.
        name: one of `FORMATS`.
        folder: to write; it must not exist.
        source: the model's folder, whose card and evaluations the folder's card repeats.
        options: of the format.
    Returns:
        The differences, and the sentences of the card.
    Raises:
        CheckpointError: the folder exists; a package is missing; the model does not fit the format, with the reason;
            or the library's embeddings differ from the model's. Nothing is written then.
        TypeError: the format has no such option.
    """
    from mclip_kit.interop import parity

    form, folder = find(name), place(folder)
    unknown = set(options) - set(form.options)
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(form.options) or 'none'}"
        )
    chosen = {**form.options, **options}
    check_new(folder)
    if form.missing:
        raise CheckpointError(form.missing)
    reason = form.misfit(model, chosen)
    if reason:
        raise CheckpointError(f"{name}: {reason}")
    with new_folder(folder) as moved:
        written = moved / "written"
        written.mkdir()
        form.write(model, written, chosen)
        for item in written.iterdir():
            item.rename(moved / item.name)
        written.rmdir()
        with temporary_folder() as temporary:
            wanted = parity.samples(temporary)
            (theirs,) = parity.read(module(name), [moved], wanted)
            whole = parity.own(model, wanted, form.encode_text(model, chosen))
            ours = {group: embedding_ND[:, : form.width(chosen)] for group, embedding_ND in whole.items()}
        found = parity.differences(ours, theirs)
        parity.check(form.library, found, form.allowed(model, chosen))
        notes = [*form.notes(model, chosen), *form.measured(chosen, ours, theirs)]
        install, lines = form.install or form.library, form.lines(model, chosen)
        write_card(moved, source, Export(name, form.library, install, lines, notes, found, form.hub))
    return Exported(found, notes)
