"""Unpaired text: plain sentences of a language, one a line, without translations and without pictures."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.data.captions import Captions
from mclip_kit.data.content_keys import normalize_spaces
from mclip_kit.data.corpora.source import File
from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.leakage import held_out_beside, held_out_files, held_out_texts
from mclip_kit.data.manifest import file_stamps
from mclip_kit.errors import DataError


@dataclass(frozen=True)
class UnpairedText:
    """The sentences of a language.

    Attributes:
        language: its code.
        lines: distinct, in the order of the file.
        counts: of its `lines`, and of those that were left out: `empty`, `repeated`, `held_out`.
    """

    language: str
    lines: list[str]
    counts: dict[str, int]


def held_out_of(prepared: Iterable[Path]) -> np.ndarray:
    """Hashes of what unpaired text may not have: held-out texts of prepared folders and of folders beside them."""
    held_N = held_out_texts(_beside(prepared))
    return held_N[held_N != 0]


def read_unpaired(language: str, path: str | Path, held_N: np.ndarray | None = None) -> UnpairedText:
    """Read a file of sentences: plain UTF-8 text, or packed as .gz, .xz or .bz2.

    >>> from pathlib import Path
    >>> _ = Path("pt.txt").write_text("maçã vermelha\\ndois  cães\\n\\ndois cães\\n", encoding="utf-8")
    >>> text = read_unpaired("pt", "pt.txt")
    >>> text.lines
    ['maçã vermelha', 'dois cães']
    >>> text.counts
    {'lines': 4, 'empty': 1, 'repeated': 1, 'held_out': 0}

    Args:
        language: a code.
        path: of the file.
        held_N: of `held_out_of`: lines with these hashes are left out.
    Raises:
        DataError: the file cannot be read, or no line is left.
    """
    lines, counts = dict[str, None](), {"lines": 0, "empty": 0, "repeated": 0, "held_out": 0}
    for raw in File(Path(path)).lines():
        line = normalize_spaces(raw)
        counts["lines"] += 1
        if not line:
            counts["empty"] += 1
        elif line in lines:
            counts["repeated"] += 1
        lines.setdefault(line)
    lines.pop("", None)
    kept = _without(lines, held_N)
    counts["held_out"] = len(lines) - len(kept)
    if not kept:
        raise DataError(f"{path}: no sentence is left of {counts['lines']:,} lines; give a file with one a line")
    return UnpairedText(language, kept, counts)


def unpaired_stamps(paths: Iterable[str], prepared: Iterable[Path]) -> dict[str, Any]:
    """What `file_stamps` says of files of sentences, and of the hashes of what is left out of them."""
    return file_stamps(path.absolute() for path in [*map(Path, paths), *held_out_files(_beside(prepared))])


def _beside(prepared: Iterable[Path]) -> set[Path]:
    return {other for folder in prepared for other in held_out_beside(folder)}


def _without(lines: Collection[str], held_N: np.ndarray | None) -> list[str]:
    """Lines that are no held-out text; letters, digits and marks count, as for the leakage check."""
    if held_N is None:
        return list(lines)
    left_out_N = np.isin(hash_texts(lines), held_N)
    return [line for line, is_held in zip(lines, left_out_N.tolist(), strict=True) if not is_held]


def sentences_of(captions: Captions, language: str, split: str = "train") -> list[str]:
    """The distinct captions of a language in a split that are no held-out text, sorted: unpaired text for trials.

    Raises:
        DataError: there are no captions of the language in the split, or all are held out.
    """
    texts = sorted({*captions.texts[captions.select(split, [language])].tolist()})
    kept = _without(texts, held_out_of([captions.folder]))
    if not kept:
        raise DataError(f"{captions.folder}: all captions in {language} of {split} are held out for tests; use train")
    return kept
