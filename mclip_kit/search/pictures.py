"""The pictures that are embedded, block by block: of a folder, of shards, of a table, or of a prepared folder."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions, uncaptioned
from mclip_kit.data.corpora import Corpus, Row, find_reader
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.folder import Captioned
from mclip_kit.data.corpora.metadata import read_metadata
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.corpora.tree import read_tree
from mclip_kit.data.images import SUFFIXES, array_row
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.prepare import adhoc
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.errors import DataError
from mclip_kit.layout import IMAGES_ARRAY, MANIFEST
from mclip_kit.storage import fetch, place
from mclip_kit.urls import is_copy

BLOCK = 32_768
"""Pictures whose names and vectors are in memory together."""
TABLES = (".tsv", ".csv", ".jsonl", ".json", ".parquet", ".xlsx")


@dataclass(frozen=True)
class Block:
    """Some pictures.

    Attributes:
        captions: where they are.
        images: their rows in its picture table, int64 (N,).
        files: a path, a tar member or a row of an array for each, see `data.images`.
        texts: a caption for each, in the teacher's language if there is one in it; or an empty text.
    """

    captions: Captions
    images: np.ndarray
    files: list[str]
    texts: list[str]

    def __reduce__(self) -> Any:
        """As a message: a prepared folder is opened by the process that gets it, once for all blocks."""
        prepared = (self.captions.folder / MANIFEST).is_file()
        return _received, (self.captions.folder if prepared else self.captions, self.images, self.files, self.texts)


_opened = lru_cache(maxsize=1)(read_captions)


def _received(captions: Captions | Path, *rest: Any) -> Block:
    return Block(_opened(captions) if isinstance(captions, Path) else captions, *rest)


def blocks(source: str | Path, prepared: Path, account: Account) -> Iterator[Block]:
    """The pictures of a source, in an order that is always the same.

    Args:
        source: a folder of pictures at any depth, a pattern of shards ('shards-{000..099}.tar'), a table with a column
            of pictures, or a folder that `mclip-kit prepare` wrote.
        prepared: the folder in which tables are prepared, by their content; their pictures are found and, if they are
            inside the table, copied there.
        account: takes what is left out.
    Raises:
        DataError: there is no such source, or no picture in it.
    """
    path = place(source)
    if not str(source).strip():
        raise DataError("the source of the pictures is empty; name a folder, shards, a table or a prepared folder")
    if fetch(path / MANIFEST).is_file():
        yield from _of_prepared(read_captions(path))
    elif _is_folder(path):
        yield from _of_rows(path, _of_folder(path, account))
    elif path.suffix.lower() in TABLES:
        if not fetch(path).is_file():
            raise DataError(f"{path}: no such table; correct its path")
        with path.open("rb") as file:
            prepared = prepared / hashlib.file_digest(file, "blake2b").hexdigest()[:16]
        if not prepared.is_dir():
            name, tree = adhoc.declare([], path, None, None, [])
            tree |= {"splits": {}, "cleaning": {"leaks": "report"}}
            prepare(parse(tree, Corpus, name), prepared, source=Source(path.parent))
        yield from _of_prepared(read_captions(prepared))
    elif ".tar" in str(source):
        name, tree = adhoc.declare([], None, str(source), None, [])
        corpus, found = parse(tree, Corpus, name), Source(None)
        found.account = account
        yield from _of_rows(path, find_reader(corpus)(corpus, found).rows)
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        raise DataError(f"{source}: a single picture; name its folder")
    else:
        raise DataError(
            f"{source}: no folder of pictures, prepared folder, shards (.tar) or table ({', '.join(TABLES)}); give one "
            "that exists"
        )


def _is_folder(path: Path) -> bool:
    """Whether a source is a folder; one of object storage is brought."""
    known = (*TABLES, *SUFFIXES, ".tar")
    return path.is_dir() or (is_copy(path) and path.suffix.lower() not in known and fetch(path).is_dir())


def _of_folder(root: Path, account: Account) -> Iterator[Row]:
    """Every picture, whatever the folders mean; pictures are opened when they are embedded."""
    tree = read_tree(root, account, check=False)
    if not tree.pictures:
        raise DataError(f"{root}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    captioned = Captioned(tree, read_metadata(tree, TEACHER_LANGUAGE, account), TEACHER_LANGUAGE)
    for picture in tree.pictures:
        yield Row("", captioned.texts(picture, account), picture, str(root / picture))


def _of_rows(path: Path, rows: Iterable[Row]) -> Iterator[Block]:
    with_files = (row for row in rows if row.file is not None)
    while taken := list(islice(with_files, BLOCK)):
        files = [Path(str(row.file)) for row in taken]
        yield Block(
            uncaptioned(path, [str(row.image) for row in taken], [row.stratum for row in taken], files),
            np.arange(len(taken)),
            [os.path.abspath(file) for file in files],
            [_caption(row.texts) for row in taken],
        )


def _of_prepared(captions: Captions) -> Iterator[Block]:
    array = (captions.folder / IMAGES_ARRAY).absolute()
    texts = [""] * len(captions.names)
    teachers_N = captions.languages.isin([TEACHER_LANGUAGE])
    for own in (~teachers_N, teachers_N):  # the latter wins
        for row in np.flatnonzero(own)[::-1]:
            texts[captions.images[row]] = str(captions.texts[row])
    for start in range(0, len(texts), BLOCK):
        images = np.arange(start, min(len(texts), start + BLOCK))
        files = [
            os.path.abspath(captions.files[image]) if captions.pixels is None else array_row(array, image)
            for image in images.tolist()
        ]
        yield Block(captions, images, files, texts[start : start + BLOCK])


def _caption(texts: list[tuple[str, str]]) -> str:
    own = [text for language, text in texts if language == TEACHER_LANGUAGE]
    return (own or [text for _, text in texts] or [""])[0]
