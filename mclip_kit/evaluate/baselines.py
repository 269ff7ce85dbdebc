"""What a model is compared with: the teacher's own text tower, translate-then-CLIP, or another model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mclip_kit.data.captions import Captions
from mclip_kit.data.corpora.source import File
from mclip_kit.data.languages import normalize_language
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.evaluate.retrieval import Retrieval, evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip, load

TEACHER, TRANSLATED = "teacher", "translated:"
ENGLISH = "en"  # the teacher's language: its captions need no translation

Baseline = Callable[[MultilingualClip, FeatureCache], dict[str, Retrieval]]
"""The model that is compared, and its store -> the baseline's ranks by language."""


def baseline(
    name: str, captions: Captions, split: str, languages: Sequence[str] | str, protocol: str = "any"
) -> Baseline:
    """A baseline by its name; whatever can be wrong about it shows here, before anything is computed.

    Args:
        name: `teacher`, the model's teacher with the captions as they are; `translated:FILE`, the same with their
            translations (`read_translations`); or another model folder.
    Raises:
        RecipeError: it is none of these.
        DataError: the translations are damaged, or lack a caption.
    """
    if name == TEACHER or name.startswith(TRANSLATED):
        read = captions
        if name != TEACHER:
            read = translated(captions, Path(name.removeprefix(TRANSLATED)), split, languages)
        return lambda model, store: evaluate(
            model, read, split, languages, None, store, tower="teacher", protocol=protocol
        )
    if not Path(name).is_dir():
        raise RecipeError(f"--baseline {name}: give teacher, translated:FILE or a model folder")
    other, own = load(name), FeatureCache()
    return lambda model, store: evaluate(other, captions, split, languages, None, own, protocol=protocol)


def translated(captions: Captions, file: Path, split: str, languages: Sequence[str] | str) -> Captions:
    """The same captions with those of a split and languages in English.

    Raises:
        DataError: the table is damaged or lacks one of them.
    """
    table = read_translations(file)
    texts = captions.texts.copy()
    for row in captions.select(split, languages):
        language, text = str(captions.languages[row]), str(captions.texts[row]).strip()
        english = table.get((language, text)) or table.get(("", text)) or (text if language == ENGLISH else "")
        if not english:
            where = f"{captions.folder / 'captions.tsv'} line {row + 2}"
            raise DataError(f"{file}: no English for {text!r} ({language}, {where}); add a line with it")
        texts[row] = english
    return replace(captions, texts=texts)


def read_translations(file: Path) -> dict[tuple[str, str], str]:
    """A table of translations: a caption as the data has it, a tab, its English; plain or compressed.

    The caption's language and a tab may stand before, for words that mean different things in two languages.

    Returns:
        (language or nothing, caption) -> English.
    Raises:
        DataError: it is missing or cannot be read, a line has other columns, or two lines contradict each other.
    """
    if not file.is_file():
        raise DataError(f"{file}: missing; write a table of captions, a tab, and their English")
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
            raise DataError(f"{file} line {number}: {other}; keep one, or put the language and a tab before")
    return table
