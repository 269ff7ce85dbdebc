"""What the cells of a table hold: names, texts, splits, and pictures with their names."""

from hashlib import blake2b
from typing import Any

from mclip_kit.data.corpora import SPLIT
from mclip_kit.data.corpora.beside import SPLIT_NAMES
from mclip_kit.data.corpora.records import CellError

NO_COLUMN = object()
"""Instead of a cell, if the table has no such column."""


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, white space, or a number that is none (pandas writes NaN for null)."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def name_of(value: Any, what: str) -> str:
    """A cell as a name.

    Raises:
        CellError: it holds something else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise CellError(f"the {what} is {str(value)[:50]!r}, not a name; fix it, or remove the row")
    return value.strip()


def as_split(name: str, splits: dict[str, str]) -> str:
    """A split as we call it.

    Raises:
        CellError: it is called something else.
    """
    split = splits.get(name) or SPLIT_NAMES.get(name.lower(), name)
    if not SPLIT.fullmatch(split):
        raise CellError(
            f"split {name!r} is none of train, valid and test; map it to one of them in options.splits, as in "
            f"--set options.splits.{name}=train"
        )
    return split


def as_texts(language: str, value: Any) -> list[str]:
    """The texts of a cell, which may hold a list of them; an empty text for one that is missing.

    Raises:
        CellError: one is not a text.
    """
    texts = value if isinstance(value, list) else [value]
    found = ["" if text is None or text != text else text for text in texts or [""]]
    for text in found:
        if not isinstance(text, str):
            raise CellError(f"the text in {language} is {str(text)[:50]!r}, not a string; fix it, or remove the row")
    return found


class NamedPictures:
    """Names pictures that are inside tables, so that two pictures never have the same name."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def name(self, value: Any, content: Any, where: str) -> tuple[str | None, bytes | None]:
        """The name of a picture and its file, if the row has it; None as the name if the row has no picture.

        Args:
            value: its name; or its file, or an object with `bytes` and `path`, as the `datasets` package writes it.
            content: its file, if `value` is a name; NO_COLUMN if files are not in the table.
            where: a name for a picture that has none, unique in the corpus.
        Raises:
            CellError: it is something else.
        """
        inside = None if content is NO_COLUMN else content
        if isinstance(value, dict) and "bytes" in value:
            value, inside = value.get("path"), value["bytes"]
        elif isinstance(value, bytes):
            value, inside = None, value
        if not inside:
            return (None if missing(value) or content is not NO_COLUMN else name_of(value, "picture")), None
        if not isinstance(inside, bytes):
            raise CellError(f"the picture's content is {str(inside)[:50]!r}, not a file; fix it, or remove the row")
        name = where if missing(value) else name_of(value, "picture")
        digest = blake2b(inside, digest_size=8).digest()
        if self._known.setdefault(name, digest) != digest:  # another picture under the same name
            name = f"{name} ({digest.hex()})"
        return name, inside
