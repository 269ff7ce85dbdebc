"""Finds the files of named pictures, by the longest common end of the paths and never by a guess.

A name may be a path on another machine, with another folder in front, with backslashes, or spelled in another form of
Unicode. What tells the names of a corpus apart must be in the common end: `old/sku4/main.jpg` is not `sku1/main.jpg`.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora.matches import Matches
from mclip_kit.data.corpora.path_ends import SPELLINGS, Ends, Spelling, any_ending, exactly, split_path
from mclip_kit.data.images import picture_id, walk_files
from mclip_kit.errors import DataError
from mclip_kit.urls import is_copy

ROOTED = re.compile(r"/|[A-Za-z]:/")
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # a file's own name, before which the folders are
FEW = 100  # files between which a whole path is looked for
MANY = 200_000  # files above which no near name is looked for
Result = tuple[str | list[int] | None, str]
Shared = tuple[int, int]
"""The number of folders with which all names begin, and the number of names."""
Folders = tuple[list[str] | None, int]
"""The folders with which some names begin (None: there is no name), and the number of names."""


class PictureFiles:
    """Finds picture files in a folder, at any depth.

    Args:
        folder: where they are; None: they are not in a folder.
        beside: another folder to which names may be relative.
        unique: names without their folders are unique, as in COCO; then the file name alone is enough.
    """

    def __init__(self, folder: Path | None, beside: Path | None = None, unique: bool = False) -> None:
        given = dict.fromkeys(base for base in (folder, beside) if base is not None)  # each name is looked for in each
        self._bases = [base for base in given if is_copy(base) or base.is_dir()]
        self.folder = folder if folder in self._bases else None
        self._unique = unique
        self._ends: dict[Spelling, Ends] = {}

    @cached_property
    def files(self) -> list[str]:
        """Paths of all files relative to the folder; links to folders are followed."""
        if self.folder is None:
            return []
        return sorted(walk_files(self.folder))

    @cached_property
    def _objects(self) -> set[str]:
        """The paths of the copies in the folders, whether they are brought or not."""
        return {str(base / name) for base in {*self._bases} if is_copy(base) for name in walk_files(base)}

    def match(self, names: Callable[[], Iterable[str]]) -> Matches:
        """Find the files of all names of a corpus.

        Args:
            names: gives all names, each time in the same order; read twice.
        Raises:
            DataError: a name such as ../../a.jpg leads to a file outside the folders.
        """
        return self.match_parts(lambda shared: [self.look(names(), shared)])

    def match_parts(self, look: Callable[[Shared | None], Iterable[Any]]) -> Matches:
        """As `match`, by what `look` found in parts of the names, perhaps in other processes.

        Args:
            look: gives what the method `look` returns for each part, in the order of the names; called with None, and
                then with what all parts share.
        """
        shared, matches = _in_common(look(None)), Matches()
        for more in look(shared):
            matches.merge(more)
        self._withdraw(matches)
        return matches

    def look(self, names: Iterable[str], shared: Shared | None) -> Folders | Matches:
        """The files of some names; without `shared`, the folders with which they begin."""
        return _folders(names) if shared is None else self._match_some(shared, names)

    def _match_some(self, shared: Shared, names: Iterable[str]) -> Matches:
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

    def _find(self, name: str, shared: Shared) -> Result:
        """The file of a name, or the files between which it is ambiguous; and if it is not certain, in what way."""
        direct = self.direct(name)
        outside = direct is not None and not self._is_inside(name, direct)
        if (direct and not outside) or not (self.files or outside):
            return direct, ""
        if self._unique:
            return self._by_name(name), ""
        parts = split_path(name)
        for spell in SPELLINGS if parts else ():
            found, kind = self._by_end(name, spell(parts), spell, shared)
            if found:
                kind = kind or ("" if spell is exactly else "loose")
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
                if path in self._objects if is_copy(path) else os.path.isfile(path):
                    return os.path.abspath(path)
        return None

    def _by_end(self, name: str, parts: list[str], spell: Spelling, shared: Shared) -> tuple[list[int], str]:
        """The files whose paths end as a name does, as far as names differ from each other.

        Names of several folders may end in whole paths of files; that is doubtful, as their folders may differ too.
        """
        ends = self._spelled(spell)
        found, common = ends.longest(parts)
        if not found:
            return [], ""
        sizes = [len(ends.parts(self.files[number])) for number in found] if len(found) < FEW else []
        if common < self._needed(name, parts, ends, shared):
            whole_file = sizes == [common] and common > 1 and shared[1] > 1
            return (found, "doubtful") if whole_file else ([], "")
        if sizes and len(found) == 1 and not self._differ_in_front(name, len(parts), sizes[0], common, shared[1]):
            return [], ""
        whole = [number for number, size in zip(found, sizes, strict=False) if size == len(parts) == common]
        return (whole if len(whole) == 1 else found), ""

    def _needed(self, name: str, parts: list[str], ends: Ends, shared: Shared) -> int:
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
        for spell in (exactly, any_ending):
            for parts in (spell(split_path(name)), newer):
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


def _in_common(parts: Iterable[Folders]) -> Shared:
    """What the names of all parts share."""
    shared: list[str] | None = None
    count = 0
    for folders, names in parts:
        count += names
        if shared is None:
            shared = folders
        elif folders is not None:
            shared = [part for part, _ in _common_start(shared, folders)]
    return len(shared or []), count


def _folders(names: Iterable[str]) -> Folders:
    """The folders with which all of some names begin, and their number."""
    shared: list[str] | None = None
    count, before = 0, None
    for count, name in enumerate(names, 1):  # noqa: B007
        folder, slash, own = name.rpartition("/")
        head = folder + slash if PLAIN.fullmatch(own) else None
        if shared != [] and (head is None or head != before):
            folders = split_path(name)[:-1]
            shared = folders if shared is None else [part for part, _ in _common_start(shared, folders)]
        before = head
    return shared, count


def _common_start(first: list[str], second: list[str]) -> Iterator[tuple[str, str]]:
    for pair in zip(first, second, strict=False):
        if pair[0] != pair[1]:
            return
        yield pair
