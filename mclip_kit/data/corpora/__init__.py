"""Corpora: the declarations `data_prep/*.yaml`, and the readers that turn a source into rows.

schema.py      what a declaration may say
source.py      finds the files of a source: in folders and zips, compressed or not
picture_files.py (with path_ends.py)
               finds the files of named pictures
account.py     counts the rows of a source, and what of it is not taken
lines.py, table.py (with table_rows.py, records.py, whole_files.py, cells.py), annotations.py, webdataset.py, folder.py
               a reader for each kind of source

To add a corpus of a known kind, write `data_prep/NAME.yaml`. To add a kind of source, also write one module here with
`read(corpus, source) -> Content`, and name it in the YAML: `reader: MODULE`. The options of a reader are a `Section`
in its module; `parse_options` fills it from the YAML's `options`. A reader of large
sources gives its rows as `Parts` too, which several processes read.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mclip_kit.config.yaml import Section, find, overridden, parse, read_yaml, shipped
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.schema import CODE, Cleaning, Corpus, Licence, Vocabulary
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError

__all__ = [
    "CODE",
    "SPLIT",
    "Cleaning",
    "Content",
    "Corpus",
    "Licence",
    "Parts",
    "Reader",
    "Row",
    "Vocabulary",
    "declaration",
    "find_reader",
    "parse_options",
    "shipped_declarations",
]

S = TypeVar("S", bound=Section)

SPLIT = re.compile(r"(train|valid|test)[A-Za-z0-9_-]{,50}")
READER_PACKAGES = ("mclip_kit.data.corpora", "mclip_kit.demo")


@dataclass(slots=True)  # not frozen: there are many rows, and frozen ones take five times as long to make
class Row:
    """What belongs together: a picture and its captions, or sentences with the same meaning, or both.

    Attributes:
        split: train, valid, test, or a name that starts with one of them; empty: drawn by the corpus's `splits`.
        texts: (language, text); a language may occur several times.
        image: the picture's name; rows with the same name have the same picture.
        file: where the picture is, if the reader knows: a path or a tar member (see `data.images`).
        content: the picture's file itself, if it is inside a table; it is copied.
        parallel: the texts are translations of each other, so they also go into the bitext.
        group: pictures with the same number look the same; None: no other picture looks like this one.
        stratum: a label by which results are also reported.
    """

    split: str
    texts: list[tuple[str, str]]
    image: str | None = None
    file: str | None = None
    content: bytes | None = None
    parallel: bool = False
    group: int | None = None
    stratum: str = "all"


@dataclass(frozen=True)
class Content:
    """What a reader returns.

    Attributes:
        rows: a stream of any length, read once.
        parts: the same rows, if processes can read them; then `rows` is left.
        pixels: uint8 (N, S, S, 3), if the reader renders the pictures itself: those of the rows, in their order.
    """

    rows: Iterable[Row]
    pixels: np.ndarray | None = None
    parts: "Parts | None" = None


@dataclass(frozen=True)
class Parts:
    """The rows of a source in parts that processes can read.

    Attributes:
        items: what `read` takes, in the order of the rows; small, or a few thousand rows; read once.
        read: the rows of an item; what it does not take is counted in the account that it is given.
        after: called with an item and its number of rows, in order and in the process that reads `items`.
        finish: called there after all rows.
        few: so many items are read without a process, as starting one takes longer; `sys.maxsize`: all are.
    """

    items: Iterable[Any]
    read: Callable[[Any, Account], Iterator[Row]]
    after: Callable[[Any, int], None] = lambda item, rows: None
    finish: Callable[[], None] = lambda: None
    few: int = 0

    def rows(self, account: Account) -> Iterator[Row]:
        """All rows, one after the other."""
        for item in self.items:
            count = 0
            for row in self.read(item, account):
                count += 1
                yield row
            self.after(item, count)
        self.finish()


Reader = Callable[[Corpus, Source], Content]


def declaration(name: str, overrides: Sequence[str] = ()) -> Corpus:
    """Read the declaration of a corpus.

    Args:
        name: of a shipped declaration, or the path of a YAML file.
        overrides: `key.path=value` each.
    Raises:
        RecipeError: it does not exist, or a key is unknown or wrong.
    """
    path = find(name, "data_prep")
    return parse(overridden(read_yaml(path) | {"name": path.stem}, overrides), Corpus, str(path))


def shipped_declarations() -> list[Path]:
    """The YAML file of every shipped declaration, sorted by name."""
    return sorted(shipped("data_prep").glob("*.yaml"))


def parse_options(corpus: Corpus, schema: type[S]) -> S:
    """The declaration's options, in the form that its reader takes.

    Raises:
        RecipeError: an option is unknown, missing or wrong.
    """
    return parse(corpus.options, schema, f"options of reader {corpus.reader}")


def find_reader(corpus: Corpus) -> Reader:
    """The function `read` of the module that a declaration names.

    Raises:
        DataError: there is no such module, or it needs a package that is not installed.
    """
    for package in READER_PACKAGES:
        try:
            module = import_module(f"{package}.{corpus.reader}")
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("mclip_kit"):
                continue
            raise DataError(f"{error.name} is not installed: {corpus.obtain}") from None
        if hasattr(module, "read"):
            read: Reader = module.read
            return read
    raise DataError(f"there is no corpus reader {corpus.reader!r}; correct `reader` in the declaration")
