"""Captions in English, from a table of translations: the text of the baseline translate-then-CLIP. No torch here."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mclip_kit.data.captions import Captions
from mclip_kit.data.columns import Strings
from mclip_kit.data.corpora.source import File
from mclip_kit.data.languages import TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import DataError
from mclip_kit.storage import fetch

TRANSLATED = "translated:"
"""What the name of the baseline begins with; the file of the table follows."""


def translated(captions: Captions, file: Path, split: str, languages: Sequence[str] | str) -> Captions:
    """Captions in which those of some split and languages are replaced by their English translations.

    Raises:
        DataError: the table is damaged or lacks one of the captions.
    """
    table = read_translations(file)
    texts = captions.texts.tolist()
    for row in captions.select(split, languages):
        language, text = str(captions.languages[row]), str(captions.texts[row]).strip()
        english = table.get((language, text)) or table.get(("", text)) or (text if language == TEACHER_LANGUAGE else "")
        if not english:
            where = f"line {row + 2} of mclip-kit data show {captions.folder}"
            raise DataError(f"{file}: no English for {text!r} ({language}, {where}); add a line for this caption")
        texts[row] = english
    return replace(captions, texts=Strings.of(texts))


def read_translations(file: Path) -> dict[tuple[str, str], str]:
    """Read a table of translations, plain or compressed: a caption as the data has it, a tab, its English.

    A line may begin with the caption's language and a tab, for words that mean different things in two languages.

    Returns:
        (language or an empty string, caption) -> English.
    Raises:
        DataError: the file is missing or cannot be read, a line has other columns, or two lines contradict each other.
    """
    if not fetch(file).is_file():
        raise DataError(f"{file}: missing; it is a table with a line for each caption: the caption, a tab, its English")
    table: dict[tuple[str, str], str] = {}
    for number, line in enumerate(File(file).lines(), 1):
        if not line.strip():
            continue
        *before, english = (cell.strip() for cell in line.split("\t"))
        if not english or not 1 <= len(before) <= 2 or not all(before):
            raise DataError(
                f"{file} line {number}: write a caption, a tab, its English; or its language and a tab first"
            )
        key = (normalize_language(before[0]) if len(before) == 2 else "", before[-1])
        if table.setdefault(key, english) != english:
            other = f"{before[-1]!r} is {table[key]!r} in an earlier line, and {english!r} here"
            raise DataError(f"{file} line {number}: {other}; keep one, or begin each line with the language and a tab")
    return table
