"""The folders in a folder, with their files; what is not looked into is said."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mclip_kit.data.images import SUFFIXES

DEPTH = 4  # folders within folders that are looked into
ELSEWHERE = {"runs", "exports", "node_modules", "__pycache__", "site-packages"}
"""Folders that are not looked into, besides hidden ones and virtual environments."""


@dataclass(frozen=True)
class Folder:
    """A folder and the names of its files, sorted."""

    path: Path
    names: list[str]

    def pictures(self) -> list[str]:
        """Names of pictures."""
        return [name for name in self.names if os.path.splitext(name)[1].lower() in SUFFIXES]


def walk(root: Path, is_unit: Callable[[Path, set[str]], bool], others: list[str]) -> Iterator[Folder]:
    """Every folder with its files.

    Args:
        is_unit: whether a folder with these files is one thing, such as a CLIP; it is not entered then.
        others: gets a line about what is not looked into: folders that cannot be read, links, pipes.
    """

    def refuse(error: OSError) -> None:
        others.append(f"{Path(error.filename)}: cannot be read ({error.strerror}); make it readable")

    for here, inner, names in os.walk(root, onerror=refuse):
        path = Path(here)
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in ELSEWHERE)
        if is_unit(path, set(names)) or "pyvenv.cfg" in names:
            inner.clear()
            continue
        shown = sorted(name for name in names if not name.startswith("."))
        files = [name for name in shown if (path / name).is_file()]
        links = [name for name in inner if (path / name).is_symlink()]
        _tell(path, links, "links to folders, which are not looked into; name such a folder to look at it", others)
        _tell(path, sorted(set(shown) - set(files)), "links to nothing, or no files; they are not read", others)
        if len(path.relative_to(root).parts) >= DEPTH:
            _tell(path, inner, f"deeper than {DEPTH} folders, which is not looked into; name such a folder", others)
            inner.clear()
        yield Folder(path, files)


def _tell(path: Path, names: list[str], what: str, others: list[str]) -> None:
    if names:
        others.append(f"{path / names[0]}{f' and {len(names) - 1:,} more' * (len(names) > 1)}: {what}")


def has_odd_characters(path: str) -> bool:
    """Whether a path has characters that a recipe or a line of commands cannot hold: control ones, or not UTF-8.

    >>> [has_odd_characters(path) for path in ("caf\\u00e9", "caf\\udce9", "a\\nb")]
    [False, True, True]
    """
    return any(letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff" for letter in path)
