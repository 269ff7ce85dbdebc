"""Reader of the embedded pictures with Unicode CLDR's own names, from its npm packages, unpacked or as .tgz files."""

import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora import Content, Corpus
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.languages import normalize_language
from mclip_kit.demo.emoji import CHOSEN_BY, named_characters, picture_name, render_rows
from mclip_kit.errors import DataError, first_line

PARTS = {"annotations": "cldr-annotations-full", "annotationsDerived": "cldr-annotations-derived-full"}
"""Folder of a package -> the package."""
PLACE = re.compile(r"(annotations|annotationsDerived)/([A-Za-z0-9-]+)/annotations\.json$")
INHERITED = "\u2191\u2191\u2191"  # CLDR's mark for a name that is another language's

Names = dict[str, str]
"""Picture's name -> name of the emoji."""
Found = tuple[str, str, Path, bytes]
"""(part, language, the file that it is in, its content)."""


def read(corpus: Corpus, source: Source) -> Content:
    """The pictures of the corpus `emoji`, in the same splits, with the names of CLDR.

    Raises:
        DataError: a package is missing or damaged, or lacks a language.
    """
    languages = [*corpus.languages, *corpus.caption_languages]
    names = _names(source, languages, corpus.obtain)
    characters = named_characters(CHOSEN_BY, [])
    return render_rows(corpus, characters, lambda character, code: names[code].get(picture_name(character)))


def _names(source: Source, languages: list[str], obtain: str) -> dict[str, Names]:
    """Language -> its names, from both packages."""
    found: dict[str, Names] = {language: {} for language in languages}
    parts: set[str] = set()
    for part, language, path, text in _files(source, set(languages), obtain):
        parts.add(part)
        source.used.add(path)
        found[language] = _parse(text, part, f"{path}: {part} of {language}") | found[language]
    missing = [package for part, package in PARTS.items() if part not in parts]
    nameless = [language for language, names in found.items() if not names]
    if missing or nameless:
        what = f"the package {' and '.join(missing)} is missing" if missing else f"no names in {', '.join(nameless)}"
        raise DataError(f"{source.root}: {what}; {obtain}")
    return found


def _files(source: Source, languages: set[str], obtain: str) -> Iterator[Found]:
    """The annotations of the languages in the source: a .tgz, or a folder with some, or with what was in them."""
    if source.root is None:
        raise DataError(f"--source DIR is missing; it is the folder with CLDR's packages; {obtain}")
    folder = source.root.is_dir()
    for path in sorted(source.root.rglob("*.tgz")) if folder else [source.root]:
        yield from _members(path, languages)
    for path in sorted(source.root.rglob("annotations.json")) if folder else []:
        match = PLACE.search(path.as_posix())
        if match and (language := normalize_language(match[2])) in languages:
            yield match[1], language, path, path.read_bytes()


def _members(path: Path, languages: set[str]) -> Iterator[Found]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                match = PLACE.search(member.name) if member.isfile() else None
                if match and (language := normalize_language(match[2])) in languages:
                    opened = archive.extractfile(member)
                    assert opened is not None  # a file has content
                    yield match[1], language, path, opened.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a readable .tgz ({first_line(error)}); fetch it again") from None


def _parse(text: bytes, part: str, where: str) -> Names:
    """The names of a file, without keywords and without those that are another language's."""
    try:
        entries: dict[str, Any] = json.loads(text)[part].get("annotations", {})
        names = {picture_name(character): entry["tts"][0] for character, entry in entries.items() if entry.get("tts")}
        return {name: text for name, text in names.items() if INHERITED not in text}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{where}: not annotations of CLDR ({first_line(error)}); fetch the package again") from None
