"""What lies beside pictures, in a folder or in a shard: names and contents of caption files, and the names of splits.

A caption file has the picture's name and another ending: `NAME.txt`, `NAME.jpg.txt`, `NAME.caption`, `NAME.json`; and a
language may stand before the ending: `NAME.de.txt`. Each line of a text is a caption.
"""

import io
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from mclip_kit.data.images import open_picture
from mclip_kit.data.languages import DOUBTFUL, is_language, normalize_language

TEXTS = (".txt", ".caption", ".captions")  # in this order, if a picture has several in one language
JSON = ".json"
CAPTIONS = ("caption", "captions", "text", "texts")  # names of fields and columns that hold captions
LANGUAGES = ("language", "lang", "locale")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
YEAR = re.compile(r"[-_]?(19|20)\d\d")
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"))
MAGIC = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*", re.DOTALL)
HEAD = 12  # bytes that MAGIC needs

Texts = list[tuple[str, str]]
"""(language, text)."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A caption file of a picture.

    Attributes:
        language: the code in its name; None: the name has none.
        ending: .txt, .caption, .captions or .json.
        name: of the file, as its folder or shard names it.
    """

    language: str | None
    ending: str
    name: str

    @property
    def rank(self) -> int:
        """Its place among the files of a picture: the lowest one is read."""
        return TEXTS.index(self.ending) if self.ending in TEXTS else len(TEXTS)


def is_system_file(name: str) -> bool:
    """Whether an operating system made a file or folder (`._a.jpg`, `.DS_Store`, `Thumbs.db`), or it is hidden."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def split_of(folder: str) -> str | None:
    """The split that a folder's name means; None if it means none.

    Example:
        >>> [split_of(name) for name in ("train", "Validation", "val2014", "cat")]
        ['train', 'valid', 'valid', None]
    """
    name = folder.lower()
    year = YEAR.search(name)
    return SPLIT_NAMES.get(name[: year.start()] if year and year.end() == len(name) else name)


def match(name: str, stems: Collection[str]) -> tuple[str, Beside] | None:
    """The picture that a caption file belongs to; None if it is no caption file, or belongs to no picture.

    Args:
        name: of the file.
        stems: the names of the pictures, each with and without its ending.

    Example:
        >>> match("cat.jpg.de.TXT", {"cat", "cat.jpg"})
        ('cat.jpg', Beside(language='de', ending='.txt', name='cat.jpg.de.TXT'))
    """
    stem, ending = os.path.splitext(name)
    ending = ending.lower()
    if ending not in (*TEXTS, JSON):
        return None
    if stem in stems:
        return stem, Beside(None, ending, name)
    stem, _, code = stem.rpartition(".")
    return (stem, Beside(normalize_language(code), ending, name)) if stem in stems and is_language(code) else None


def choose(files: Collection[Beside]) -> tuple[list[Beside], list[Beside]]:
    """The files to read, one for each language, and the others; a .json without a language only if it is alone."""
    taken: dict[str | None, Beside] = {}
    for file in sorted(files, key=lambda file: (file.rank, file.name)):
        alone = file.ending != JSON or file.language or not taken
        if alone:
            taken.setdefault(file.language, file)
    return list(taken.values()), [file for file in files if file not in taken.values()]


def json_texts(content: Any, language: str, known: Collection[str] = ()) -> Texts:
    """The captions in the content of a JSON file.

    Read are `caption`, `captions`, `text` or `texts`, each a text, a list, or an object with languages; beside it
    `language`; else languages as keys: `{"en": "red", "de": "rot"}`.

    Args:
        content: what `json.loads` gave.
        language: of captions that name none.
        known: the wanted languages; only if `id` or `no` is one of them, such a field holds captions.
    Raises:
        ValueError: captions are no text; the message names the field.

    Example:
        >>> json_texts({"id": "0001", "en": "red"}, "en"), json_texts({"id": "merah"}, "en", ["en", "id"])
        ([('en', 'red')], [('id', 'merah')])
    """
    return list(_json_texts(content, language, "it", DOUBTFUL.difference(known)))


def _json_texts(content: Any, language: str, field: str, doubtful: Collection[str]) -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield language, content
    elif isinstance(content, list):
        for item in content:
            yield from _json_texts(item, language, field, doubtful)
    elif isinstance(content, dict):
        names = {str(name).lower(): name for name in reversed(content)}
        own = next((content[names[name]] for name in LANGUAGES if name in names), None)
        language = normalize_language(own) if isinstance(own, str) and own.strip() else language
        field = next((names[name] for name in CAPTIONS if name in names and content[names[name]] is not None), "")
        if field:
            yield from _json_texts(content[field], language, field, ())
        else:
            for name in filter(is_language, map(str, content)):
                code = normalize_language(name)
                if code not in doubtful and isinstance(content[name], str | list):
                    yield from _json_texts(content[name], code, name, ())
    elif content is not None:
        raise ValueError(f"{field!r} is neither a text nor a list of texts")


def is_picture(head: bytes, whole: Any) -> bool:
    """Whether a file begins as a picture does.

    Args:
        head: its first `HEAD` bytes.
        whole: a function that gives all of it; called for formats that `head` does not show.
    """
    if MAGIC.match(head):
        return True
    try:
        with open_picture(io.BytesIO(whole())):
            return True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
