"""Finds the files of named pictures, by the longest common end of the paths and never by a guess.

A name may be a path on another machine, with another folder in front, with backslashes, or spelled in another form of
Unicode. What tells the names of a corpus apart must be in the common end: `old/sku4/main.jpg` is not `sku1/main.jpg`.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from urllib.parse import unquote

from mclip_kit.data.corpora.matches import Matches
from mclip_kit.data.images import SUFFIXES, picture_id, walk_files
from mclip_kit.errors import DataError

MORE_SUFFIXES = SUFFIXES | {".avif", ".jfif", ".jpe", ".heic", ".heif", ".ppm", ".pgm", ".jp2", ".jxl"}
"""Endings of pictures, one of which may stand for another."""
ROOTED = re.compile(r"/|[A-Za-z]:/")
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # a file's own name, before which the folders are
FEW = 100  # files between which a whole path is looked for
MANY = 200_000  # files above which no near name is looked for
Spelling = Callable[[str], list[str]]
"""From a path to its parts, in one spelling."""
Result = tuple[str | list[int] | None, str]
FindAll = Callable[[Callable[[Iterable[str]], Matches], Iterable[str]], Iterable[Matches]]


def split_path(name: str) -> list[str]:
    """The parts of a path or address, in Unicode's composed form.

    Example:
        >>> split_path("file:///data/my%20pictures/0.jpg"), split_path(r"images\\\\0.jpg")
        (['data', 'my pictures', '0.jpg'], ['images', '0.jpg'])
    """
    name = unquote(name.partition("://")[2]) if "://" in name else name.replace("\\", "/")
    return [part for part in unicodedata.normalize("NFC", name.strip()).split("/") if part not in ("", ".")]


def _any_case(name: str) -> list[str]:
    return [part.casefold() for part in split_path(name)]


def _any_ending(name: str) -> list[str]:
    parts = _any_case(name)
    stem, ending = os.path.splitext(parts[-1]) if parts else ("", "")
    return [*parts[:-1], stem] if ending in MORE_SUFFIXES else parts


SPELLINGS: tuple[Spelling, ...] = (split_path, _any_case, _any_ending)
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
        self.top = {parts[0] for parts in map(spell, {file.partition("/")[0] + "/x" for file in files if "/" in file})}
        for number, file in enumerate(files):
            if spell is not _any_ending or os.path.splitext(file)[1].lower() in MORE_SUFFIXES:
                self._by_name.setdefault(spell(file)[-1], []).append(number)

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
                parts = self.spell(self.files[number])
                if len(parts) > len(end):
                    groups.setdefault(parts[-len(end) - 1], []).append(number)
            if len(found) > 1:
                self._by_end[end] = groups
        return groups


class PictureFiles:
    """Finds picture files in a folder, at any depth.

    Args:
        folder: where they are; None: they are not in a folder.
        beside: another folder to which names may be relative.
        unique: names without their folders are unique, as in COCO; then the file name alone is enough.
    """

    def __init__(self, folder: Path | None, beside: Path | None = None, unique: bool = False) -> None:
        self.folder = folder if folder is not None and folder.is_dir() else None
        self._bases = [base for base in (self.folder, beside) if base is not None and base.is_dir()]
        self._unique = unique
        self._ends: dict[Spelling, Ends] = {}

    @cached_property
    def files(self) -> list[str]:
        """Paths of all files relative to the folder; links to folders are followed."""
        if self.folder is None:
            return []
        return sorted(walk_files(self.folder))

    def match(self, names: Callable[[], Iterable[str]], find: FindAll | None = None) -> Matches:
        """Find the files of all names of a corpus.

        Args:
            names: gives all names, each time in the same order; read twice.
            find: calls a function with some names at a time, and gives its results in their order; None: with all.
        Raises:
            DataError: a name such as ../../a.jpg leads to a file outside the folders.
        """
        matches, some = Matches(), partial(self._match_some, _shared_folder(names()))
        for more in find(some, names()) if find else [some(names())]:
            matches.merge(more)
        self._withdraw(matches)
        return matches

    def _match_some(self, shared: tuple[int, int], names: Iterable[str]) -> Matches:
        matches = Matches()
        for name in names:
            found, kind = self._find(name, shared)
            if isinstance(found, str):
                matches.found[name] = found
                if kind:
                    (matches.loose if kind == "loose" else matches.doubtful)[name] = found
            elif found:
                matches.add_ambiguous(name, [self.files[number] for number in found])
            else:
                matches.add_missing(name)
        return matches

    def free_files(self, matches: Matches) -> list[str]:
        """The files that no name has; none if there are more than `MANY`, which takes too long."""
        taken = {*matches.found.values()}
        numbered = enumerate(self.files if len(self.files) <= MANY else [])
        return [file for number, file in numbered if self._path(number) not in taken]

    def _withdraw(self, matches: Matches) -> None:
        """Take back files that belong to another name; of doubtful ones all, if one of them does."""
        several = {*matches.loose.values(), *matches.doubtful.values()}
        claims = Counter(file for file in matches.found.values() if file in several)
        if any(claims[file] > 1 for file in matches.doubtful.values()):
            for name in matches.doubtful:
                del matches.found[name]
                matches.add_missing(name)
        for name, file in matches.loose.items():
            if claims[file] > 1:
                del matches.found[name]
                matches.add_ambiguous(name, [f"{file}, which belongs to another name"])

    def _find(self, name: str, shared: tuple[int, int]) -> Result:
        """The file of a name, or the files between which it is ambiguous; and if it is not certain, in what way."""
        direct = self.direct(name)
        outside = direct is not None and not self._is_inside(name, direct)
        if (direct and not outside) or not (self.files or outside):
            return direct, ""
        if self._unique:
            return self._by_name(name), ""
        for spell in SPELLINGS:
            found, kind = self._by_end(name, spell, shared)
            if found:
                kind = kind or ("" if spell is split_path else "loose")
                return self._path(found[0]) if len(found) == 1 else found, kind
        if outside:
            where = " and ".join(dict.fromkeys(map(str, self._bases)))
            raise DataError(f"picture {name!r}: leads out of {where}; write its whole path, {direct}")
        return None, ""

    def _is_inside(self, name: str, path: str) -> bool:
        """Whether the file of a name is in the folders that were given; whole paths may lead anywhere."""
        whole = bool(ROOTED.match(name.replace("\\", "/"))) or "://" in name
        return whole or any(Path(path).is_relative_to(os.path.abspath(base)) for base in self._bases)

    def direct(self, name: str) -> str | None:
        """The file that lies exactly where a name says: a path, or one relative to a folder."""
        if "://" in name:
            if not name.startswith("file://"):
                return None
            name = "/" + "/".join(split_path(name.replace("file://localhost/", "file:///")))
        for base in self._bases or ([Path("/")] if os.path.isabs(name) else []):
            for spelled in (name, name.replace("\\", "/")) if "\\" in name else (name,):
                path = os.path.normpath(os.path.join(base, spelled))
                if os.path.isfile(path):
                    return os.path.abspath(path)
        return None

    def _by_end(self, name: str, spell: Spelling, shared: tuple[int, int]) -> tuple[list[int], str]:
        """The files whose paths end as a name does, as far as names differ from each other.

        Names of several folders may end in whole paths of files; that is doubtful, as their folders may differ too.
        """
        parts = spell(name)
        if not parts:
            return [], ""
        ends = self._spelled(spell)
        found, common = ends.longest(parts)
        if not found:
            return [], ""
        sizes = [len(spell(self.files[number])) for number in found] if len(found) < FEW else []
        if common < self._needed(name, parts, ends, shared):
            whole_file = sizes == [common] and common > 1 and shared[1] > 1
            return (found, "doubtful") if whole_file else ([], "")
        if sizes and len(found) == 1 and not self._differ_in_front(name, len(parts), sizes[0], common, shared[1]):
            return [], ""
        whole = [number for number, size in zip(found, sizes, strict=False) if size == len(parts) == common]
        return (whole if len(whole) == 1 else found), ""

    def _needed(self, name: str, parts: list[str], ends: Ends, shared: tuple[int, int]) -> int:
        """How many parts at the end must be equal: those that tell names apart, and those in a folder that is here."""
        folders, names = shared
        if names < 2 and "://" in name:
            return len(parts)
        here = [number for number, part in enumerate(parts[:-1]) if part in ends.top]
        return max(1, len(parts) - folders, len(parts) - here[-1] if here else 0)

    def _differ_in_front(self, name: str, parts: int, file: int, common: int, names: int) -> bool:
        """Whether what differs is only where the folder of all pictures lies."""
        if common in (parts, file):
            return True  # one has more folders in front
        elsewhere = bool(ROOTED.match(name.replace("\\", "/"))) or "://" in name
        return names > 1 and (common > 1 or elsewhere)

    def _by_name(self, name: str) -> str | None:
        """The file of a name that is unique without its folders; as COCO 2017 names it too."""
        base = split_path(name)[-1:] or [""]
        kind, _, number = picture_id(base[0], None).partition(":")
        newer = [f"{int(number):012}"] if kind == "coco" and number else []
        for spell in (split_path, _any_ending):
            for parts in (spell(name), newer):
                found = self._spelled(spell).longest(parts)[0] if parts else []
                if found:
                    return self._path(found[0])
        return None

    def _spelled(self, spell: Spelling) -> Ends:
        if spell not in self._ends:
            self._ends[spell] = Ends(self.files, spell)
        return self._ends[spell]

    def _path(self, number: int) -> str:
        return os.path.abspath(os.path.join(str(self.folder), self.files[number]))


def _shared_folder(names: Iterable[str]) -> tuple[int, int]:
    """The number of folders with which all names begin, and the number of names."""
    shared: list[str] | None = None
    count, before = 0, None
    for count, name in enumerate(names, 1):  # noqa: B007
        folder, slash, own = name.rpartition("/")
        head = folder + slash if PLAIN.fullmatch(own) else None
        if shared != [] and (head is None or head != before):
            folders = split_path(name)[:-1]
            shared = folders if shared is None else [part for part, _ in _common_start(shared, folders)]
        before = head
    return len(shared or []), count


def _common_start(first: list[str], second: list[str]) -> Iterator[tuple[str, str]]:
    for pair in zip(first, second, strict=False):
        if pair[0] != pair[1]:
            return
        yield pair
