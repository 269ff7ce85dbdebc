"""The ends of paths, in several spellings: by them the files of named pictures are found."""

import os
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote

from mclip_kit.data.images import SUFFIXES

MORE_SUFFIXES = SUFFIXES | {".avif", ".jfif", ".jpe", ".heic", ".heif", ".ppm", ".pgm", ".jp2", ".jxl"}
"""Endings of pictures, one of which may stand for another."""
Spelling = Callable[[list[str]], list[str]]
"""From the parts of a path, as `split_path` gives them, to its parts in one spelling."""


def split_path(name: str) -> list[str]:
    """The parts of a path or address, in Unicode's composed form.

    Example:
        >>> split_path("file:///data/my%20pictures/0.jpg"), split_path(r"images\\\\0.jpg")
        (['data', 'my pictures', '0.jpg'], ['images', '0.jpg'])
    """
    name = unquote(name.partition("://")[2]) if "://" in name else name.replace("\\", "/")
    return [part for part in unicodedata.normalize("NFC", name.strip()).split("/") if part not in ("", ".")]


def exactly(parts: list[str]) -> list[str]:
    """The parts as they are."""
    return parts


def _any_case(parts: list[str]) -> list[str]:
    return [part.casefold() for part in parts]


def any_ending(parts: list[str]) -> list[str]:
    """The parts of a path without the ending of a picture, in any case."""
    parts = _any_case(parts)
    stem, ending = os.path.splitext(parts[-1]) if parts else ("", "")
    return [*parts[:-1], stem] if ending in MORE_SUFFIXES else parts


SPELLINGS: tuple[Spelling, ...] = (exactly, _any_case, any_ending)
"""The exact one first; with the others, a file is taken only if it belongs to no other name."""


class Ends:
    """Files by the ends of their paths, in one spelling.

    Args:
        files: paths relative to a folder.
        spell: gives the parts of a path.
    """

    def __init__(self, files: list[str], spell: Spelling) -> None:
        self.files, self.spell = files, spell
        self._by_end: dict[tuple[str, ...], dict[str, list[int]]] = {}
        self._by_name: dict[str, list[int]] = {}
        tops = {file.partition("/")[0] + "/x" for file in files if "/" in file}
        self.top = {self.parts(top)[0] for top in tops}
        for number, file in enumerate(files):
            if spell is not any_ending or os.path.splitext(file)[1].lower() in MORE_SUFFIXES:
                self._by_name.setdefault(self.parts(file)[-1], []).append(number)

    def parts(self, file: str) -> list[str]:
        """The parts of a path in this spelling."""
        return self.spell(split_path(file))

    def longest(self, parts: list[str]) -> tuple[list[int], int]:
        """The files that have the most parts at the end in common with a path, and how many these are."""
        found, common = self._by_name.get(parts[-1], []), 1
        while found and common < len(parts):
            narrower = self._with_parent(tuple(parts[-common:]), found).get(parts[-common - 1])
            if not narrower:
                break
            found, common = narrower, common + 1
        return found, common if found else 0

    def _with_parent(self, end: tuple[str, ...], found: list[int]) -> dict[str, list[int]]:
        """The folder before a common end -> files. Kept if there are several, so that each end is sorted once."""
        groups = self._by_end.get(end)
        if groups is None:
            groups = {}
            for number in found:
                parts = self.parts(self.files[number])
                if len(parts) > len(end):
                    groups.setdefault(parts[-len(end) - 1], []).append(number)
            if len(found) > 1:
                self._by_end[end] = groups
        return groups
