"""Reads the captions in the `metadata` table of a folder of pictures, as `datasets` of Hugging Face lays it out.

https://huggingface.co/docs/datasets/image_dataset: metadata.jsonl, .csv or .parquet has a row for each picture of its
own folder and those below, with the picture's path from there in the column `file_name`.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import CAPTIONS, LANGUAGES, Texts, json_texts, split_of
from mclip_kit.data.corpora.records import Form, open_table
from mclip_kit.data.corpora.source import File
from mclip_kit.data.corpora.tree import Tree
from mclip_kit.data.languages import DOUBTFUL, is_language, normalize_language
from mclip_kit.errors import DataError

FILES = ("file_name", "filename", "file", "image", "image_path", "path")
SPLITS = ("split",)


@dataclass
class Described:
    """What a table says of a picture; `split` is empty if it says none."""

    texts: Texts = field(default_factory=list)
    split: str = ""


@dataclass(frozen=True)
class _Columns:
    """The columns of a table: of the file, of a caption, of captions by language, of language and of split."""

    file: str | None
    caption: str | None
    languages: dict[str, str]
    language: str | None
    split: str | None

    def unused(self, names: list[str]) -> list[str]:
        used = {self.file, self.caption, *self.languages, self.language, self.split}
        return [name for name in names if name not in used]


def read_metadata(tree: Tree, language: str, account: Account, known: Collection[str] = ()) -> dict[str, Described]:
    """Picture -> what the tables of a folder say of it.

    Args:
        language: of captions in a column that names no language.
        account: columns that are not read, and rows whose picture is not there, are counted as ignored.
        known: the wanted languages; only if `id` or `no` is one of them, a column of this name holds captions.
    Raises:
        DataError: a table cannot be read, has no column with the names of files, or a caption is no text.
    """
    pictures = frozenset(tree.pictures)
    found: dict[str, Described] = {}
    for table in tree.tables:
        file = File(tree.root / table)
        unused: set[str] = set()
        for number, row in _rows(file):
            columns = _columns(list(row), known)
            if columns.file is None:
                raise DataError(f"{file} row {number}: no column file_name; it has {', '.join(row) or 'none'}")
            unused |= {*columns.unused(list(row))}
            name = os.path.normpath(os.path.join(os.path.dirname(table), str(row[columns.file]))).replace(os.sep, "/")
            if name not in pictures:
                account.ignore(f"rows of {file.name} whose picture is not there", f"{file} row {number}: {name}")
                continue
            described = found.setdefault(name, Described())
            described.texts += _texts(row, columns, language, f"{file} row {number}")
            described.split = str((columns.split and row[columns.split]) or "")
            described.split = split_of(described.split) or described.split
        for column in sorted(unused):
            account.ignore(f"column {column} of {file.name}", file)
    return found


def _rows(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    opened = open_table(file, Form.model_validate({}))
    names = opened.names or []
    for number, row in opened.read(names):
        yield number, row if isinstance(row, dict) else dict(zip(names, row, strict=True))


def _columns(names: list[str], known: Collection[str]) -> _Columns:
    lower = {name.lower(): name for name in reversed(names)}

    def first(known: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in known if name in lower), None)

    found = {name: code for name in names if (code := _language_column(name))}
    sure = any(code not in DOUBTFUL and _is_prefixed(name) for name, code in found.items())
    languages = {
        name: code
        for name, code in found.items()
        if code not in DOUBTFUL or code in known or (sure and _is_prefixed(name))
    }
    return _Columns(first(FILES), first(CAPTIONS), languages, first(LANGUAGES), first(SPLITS))


def _is_prefixed(name: str) -> bool:
    """Whether a column with a language has a name such as `caption_de`."""
    return name.lower().partition("_")[0] in CAPTIONS


def _language_column(name: str) -> str | None:
    """The language of a column such as `de` or `caption_de`; None if it names none."""
    code = name.partition("_")[2] if _is_prefixed(name) else name
    return normalize_language(code) if is_language(code) else None


def _texts(row: dict[str, Any], columns: _Columns, language: str, where: str) -> Texts:
    own = row[columns.language] if columns.language else None
    language = normalize_language(str(own)) if own else language
    cells = [(columns.caption, language), *columns.languages.items()]
    try:
        return [text for name, code in cells if name for text in json_texts({"caption": row[name]}, code)]
    except ValueError as error:
        raise DataError(f"{where}: {error}; correct it") from None
