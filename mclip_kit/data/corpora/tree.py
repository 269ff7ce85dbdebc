"""Lists a folder of pictures: the pictures, the caption files of each, and the tables with their metadata."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import HEAD, Beside, is_picture, is_system_file, match, split_of
from mclip_kit.data.images import SUFFIXES
from mclip_kit.errors import DataError
from mclip_kit.progress import tqdm

OTHER_PICTURES = (".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef")
TABLES = (".tsv", ".csv", ".jsonl", ".parquet")
METADATA = frozenset(f"metadata{ending}" for ending in TABLES)


@dataclass
class Tree:
    """What a folder holds; names are paths below it, with `/`.

    Attributes:
        root: the folder.
        pictures: sorted by name, folder by folder.
        beside: picture -> its caption files; only pictures that have some.
        tables: metadata.jsonl, .csv, .tsv or .parquet, as `datasets` of Hugging Face reads them.
    """

    root: Path
    pictures: list[str] = field(default_factory=list)
    beside: dict[str, list[Beside]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)


def read_tree(root: Path, account: Account, check: bool = True) -> Tree:
    """List a folder. What is not taken is counted: broken pictures as rows that are left out, other files as ignored.

    Links to files and to folders are followed, each folder once.

    Args:
        check: open each picture, to leave out those of 0 bytes and files that are none.
    """
    tree, others = Tree(root), []
    for name in tqdm(_walk(root, account), "looking for pictures", leave=False, unit="file", dynamic_ncols=True):
        ending = os.path.splitext(name)[1].lower()
        if ending in SUFFIXES:
            broken = _what_is_wrong(root / name) if check else None
            tree.pictures += [] if broken else [name]
            if broken:
                account.leave_out(broken, root / name)
        elif ending in OTHER_PICTURES:
            account.leave_out(f"pictures in {ending}, which is not read (convert them to JPEG)", root / name)
        elif name.rsplit("/", 1)[-1].lower() in METADATA:
            tree.tables.append(name)
        else:
            others.append(name)
    _match(tree, others, account)
    return tree


def _match(tree: Tree, files: list[str], account: Account) -> None:
    """Give each caption file to the pictures of its name, and count the other files."""
    owners: dict[str, list[str]] = {}
    for name in tree.pictures:
        for key in (name, os.path.splitext(name)[0]):
            owners.setdefault(key, []).append(name)
    for name in files:
        found = match(name, owners)
        for picture in owners[found[0]] if found else ():
            tree.beside.setdefault(picture, []).append(found[1])  # type: ignore[index]
        if not found:
            account.ignore(_what_it_is(name), tree.root / name)


def _what_it_is(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()
    if ending in TABLES:
        return f"{ending} files (a table of captions is prepared with --pairs FILE --images FOLDER)"
    if ending == ".tar":
        return ".tar files (shards of pictures are prepared with --webdataset 'FOLDER/*.tar')"
    return f"{ending} files that are no caption of a picture" if ending else "files without an ending"


def _what_is_wrong(path: Path) -> str | None:
    """Why a file with the ending of a picture is none; None: it is one."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(HEAD)
    except OSError as error:
        if path.is_symlink():
            return "links to a picture that is not there"
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable, or remove it") from None
    if not head:
        return "pictures of 0 bytes"
    return None if is_picture(head, path.read_bytes) else "files with the ending of a picture that are none"


def _walk(root: Path, account: Account) -> Iterator[str]:
    """The name of every file below a folder, sorted; the folders' own links are followed, each target once."""
    real = root.resolve()
    seen = {_identity(real)}

    def inside(folder: str) -> Iterator[str]:
        for entry in _entries(root / folder):
            name = f"{folder}{entry.name}"
            if is_system_file(entry.name):
                account.ignore("hidden files and files of the system", root / name)
            elif not os.path.isdir(entry.path):
                yield name
            elif entry.is_symlink() and (_is_near(entry, real) or _identity(entry) in seen):
                account.ignore("links to folders that are read anyway", root / name)
            else:
                seen.add(_identity(entry))
                yield from inside(f"{name}/")

    yield from inside("")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None


def _is_near(link: os.DirEntry[str], root: Path) -> bool:
    """Whether a link leads to a folder in the root, or above it."""
    target = Path(link.path).resolve()
    return target.is_relative_to(root) or root.is_relative_to(target)


def _identity(path: os.DirEntry[str] | Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def split_folders(pictures: list[str]) -> tuple[int, dict[str, str]]:
    """Split folders, if all pictures are below such: their depth, and folder -> split; else (0, {}).

    Example:
        >>> split_folders(["train/cat/1.jpg", "val/cat/2.jpg"])
        (0, {'train': 'train', 'val': 'valid'})
    """
    folders = {os.path.dirname(name) for name in pictures}
    shared = os.path.commonpath(folders) if all(folders) else ""
    parts = shared.split("/") if shared else []
    depth = next((place for place, part in enumerate(parts) if split_of(part)), len(parts))
    names = {folder.split("/")[depth] if folder.count("/") >= depth and folder else "" for folder in folders}
    splits = {name: split_of(name) for name in sorted(names)}
    return (depth, {name: split for name, split in splits.items() if split}) if all(splits.values()) else (0, {})
