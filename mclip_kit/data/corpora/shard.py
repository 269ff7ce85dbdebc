"""Reads the samples of a shard: a tar in which consecutive members with one key are a sample, as webdataset has it.

The key of a member is its name up to the first dot of its base name. A key with dots in it (`img.0001.jpg`,
`img.0001.txt`) is read too: if the parts after the first dot make several pictures, each is a sample.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mclip_kit.data import images
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import HEAD, Beside, is_picture, is_system_file, match
from mclip_kit.data.corpora.tar_names import plain_names
from mclip_kit.errors import DataError, first_line
from mclip_kit.storage import fetch, names

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BROKEN = (tarfile.TarError, OSError, ValueError, OverflowError)  # what tarfile raises for headers that make no sense
FIRST = ("jpg", "jpeg", "png", "webp")  # the first that a sample has is its picture; then the other kinds
PICTURES = (*FIRST, *sorted({suffix[1:] for suffix in images.SUFFIXES} - {*FIRST}))
CLASSES = frozenset(("classnames.txt", "classes.txt", "__classes", "__classes.txt", "__classes__", "__classes__.txt"))
NAMED = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")
"""Key and extensions, as webdataset's `base_plus_ext` tells them apart; it cannot be imported without torch."""
KEY = "key"
KEYS = frozenset((KEY, *(f"{KEY}.{kind}" for kind in PICTURES)))  # of a sample, as `match` takes them
SORT = "unpack it into a new FOLDER, and pack it in the order of names: tar --sort=name -cf NEW.tar -C FOLDER ."


@dataclass
class Sample:
    """The members with one key, in a shard that is open.

    Attributes:
        shard: path of the tar.
        key: the members' common name, without extension.
        handle: the open tar.
        members: extension in lower case, which may have dots -> header of the member.
    """

    shard: Path
    key: str
    handle: IO[bytes]
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def where(self, extension: str) -> str:
        """A member's name in messages."""
        return f"{self.shard}: member {self.key}.{extension}"

    @property
    def pictures(self) -> list[str]:
        """The extensions of its pictures, the one that is taken first."""
        return [extension for extension in PICTURES if extension in self.members]

    def picture(self) -> str:
        """The tar member with its first picture, as `data.images` names it."""
        info = self.members[self.pictures[0]]
        return images.tar_member(self.shard.absolute(), info.offset_data, info.size)

    def what_is_wrong(self) -> str | None:
        """Why its picture is none; None: it is one."""
        extension = self.pictures[0]
        if not self.members[extension].size:
            return "pictures of 0 bytes"
        whole = is_picture(self.content(extension, HEAD), lambda: self.content(extension))
        return None if whole else "files with the ending of a picture that are none"

    def captions(self) -> list[Beside]:
        """Its caption files; their names are extensions."""
        found = []
        for extension in self.members:
            matched = match(f"{KEY}.{extension}", KEYS)
            found += [Beside(matched[1].language, matched[1].ending, extension)] if matched else []
        return found

    def content(self, extension: str, size: int | None = None) -> bytes:
        """A member's first bytes; None: all."""
        info = self.members[extension]
        self.handle.seek(info.offset_data)
        return self.handle.read(info.size if size is None else min(size, info.size))

    def text(self, extension: str) -> str:
        """A member's content as text, without a byte-order mark."""
        try:
            return self.content(extension).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            wrong = f"{error.object[error.start]:#04x} at {error.start}"
            raise DataError(f"{self.where(extension)}: not UTF-8 (byte {wrong}); convert it to UTF-8") from None

    def json(self, extension: str = "json") -> Any:
        """The content of a json member; empty if the sample has none."""
        if extension not in self.members:
            return {}
        try:
            content = json.loads(self.text(extension))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where(extension)}: not JSON ({first_line(error)}); make the shard again") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.where(extension)}: a {type(content).__name__}, not an object; make the shard again")
        return content

    def field(self, facts: dict[str, Any], name: str) -> Any:
        """A field of the json; None if the sample has no json."""
        if name not in facts and "json" in self.members:
            there = ", ".join(facts) or "none"
            raise DataError(f"{self.where('json')}: it has no {name!r}; its fields are {there}")
        return facts.get(name)


def read_shard(shard: Path, account: Account) -> Iterator[Sample]:
    """The samples of a shard, in its order.

    Raises:
        DataError: it is compressed or damaged, a member is no plain file or occurs twice, or a key's members are apart.
    """
    tar: tarfile.TarFile | None = None
    try:
        with open(fetch(shard), "rb") as handle:
            head = handle.read(max(map(len, MAGIC)))
            packed = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
            if packed:
                raise DataError(
                    f"{shard}: compressed by {packed}, so its pictures cannot be read in place; decompress it"
                )
            handle.seek(0)
            with tarfile.open(fileobj=handle, mode="r:", encoding="utf-8", errors="strict") as tar:
                for sample in _groups(shard, handle, tar, account):
                    yield from _split(sample)
    except BROKEN as error:
        read = tar.members if tar else []  # type: ignore[attr-defined]
        last = f" after member {read[-1].name!r}" if read else ""
        raise DataError(f"{shard}: not a whole tar{last} ({first_line(error)}); fetch it again") from None


def read_kinds(shard: Path) -> Iterator[Sample]:
    """The first sample of a shard, and one with the endings of all; all samples, if an ending may name a language."""
    names = [name.removeprefix("./") for name in plain_names(fetch(shard)) or ("",)]
    named = [NAMED.fullmatch(name) for name in names if not _lists_classes(name)]
    endings = {match[2].lower() if match else "." for match in named}
    samples = read_shard(shard, Account())
    if any("." in ending for ending in endings) or any(map(is_system_file, "/".join(names).split("/"))):
        yield from samples
    for first in islice(samples, 1):
        yield first
        yield replace(first, members=dict.fromkeys(endings, tarfile.TarInfo()))


def _groups(shard: Path, handle: IO[bytes], tar: tarfile.TarFile, account: Account) -> Iterator[Sample]:
    """Consecutive members with webdataset's key."""
    sample, seen = None, set()
    for info in tar:
        _check_member(shard, info)
        name = info.name.removeprefix("./")
        named = NAMED.fullmatch(name)
        if info.isdir() or _lists_classes(name):
            continue
        if any(map(is_system_file, name.split("/"))):
            account.ignore("hidden members and members of the system", f"{shard}: {name}")
            continue
        if named is None:
            account.ignore("members without an ending", f"{shard}: {name}")
            continue
        key, extension = named.groups()
        if sample is None or key != sample.key:
            if sample:
                yield sample
            if key in seen:
                raise DataError(
                    f"{shard}: member {info.name!r}: key {key!r} occurred before, with other keys between; {SORT}"
                )
            seen.add(key)
            sample = Sample(shard, key, handle)
        if sample.members.setdefault(extension.lower(), info) is not info:
            raise DataError(f"{shard}: member {info.name!r} occurs twice; make the shard again")
    _check_end(handle, tar)
    if sample:
        yield sample


def _split(group: Sample) -> Iterator[Sample]:
    """The samples in a group: several if its keys have dots, as in img.0001.jpg, img.0002.jpg."""
    stems = {stem for stem, kind in map(os.path.splitext, group.members) if stem and kind[1:] in PICTURES}
    others = [name for name in group.members if name.rpartition(".")[2] not in PICTURES]
    if group.pictures:  # a.seg.png beside a.jpg belongs to it, unless it has a caption of its own
        stems = {stem for stem in stems if any(name.startswith(f"{stem}.") for name in others)}
    parts = {stem: Sample(group.shard, f"{group.key}.{stem}", group.handle) for stem in sorted(stems)}
    rest = Sample(group.shard, group.key, group.handle)
    for name, info in group.members.items():
        pieces = name.split(".")
        owner = next((s for n in range(len(pieces) - 1, 0, -1) if (s := ".".join(pieces[:n])) in parts), None)
        (parts[owner] if owner else rest).members[name[len(owner) + 1 :] if owner else name] = info
    yield from ([rest] if rest.members else [])
    yield from parts.values()


def _check_member(shard: Path, info: tarfile.TarInfo) -> None:
    if info.size < 0:
        raise tarfile.ReadError(f"member {info.name!r} has {info.size} bytes")
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise DataError(f"{shard}: member {info.name!r}: points outside the tar; make the shard again")
    if not info.isdir() and (not info.isreg() or info.issparse()):
        raise DataError(f"{shard}: member {info.name!r}: a link, a device or sparse; make the shard with plain files")


def _check_end(handle: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raise unless only zeros follow the last member: tarfile stops silently at a header that it cannot read."""
    handle.seek(tar.offset)
    rest = handle.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError(f"it ends early, or has other content, at byte {tar.offset:,}")


def _lists_classes(name: str) -> bool:
    return name.rsplit("/", 1)[-1].lower() in CLASSES


def class_names(shards: list[Path]) -> list[str]:
    """The names of classes by number, from classnames.txt or __classes beside the shards or in one; empty: none."""
    for folder in dict.fromkeys(place for shard in shards for place in (shard.parent, shard.parent.parent)):
        for name in names(folder):
            path = fetch(folder / name) if name.lower() in CLASSES else folder
            if path.is_file():
                return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    first = fetch(shards[0])
    members = plain_names(first)
    try:
        with tarfile.open(first, "r:") as tar:
            for info in tar if members is None or any(map(_lists_classes, members)) else ():
                if info.isreg() and _lists_classes(info.name):
                    return tar.extractfile(info).read().decode("utf-8-sig", "replace").splitlines()  # type: ignore[union-attr]
    except BROKEN:
        return []  # `read_shard` reports it
    return []
