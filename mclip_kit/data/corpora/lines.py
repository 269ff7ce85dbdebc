"""Reads text files with the same number of lines, which belong together: a file a language, maybe a list of pictures.

Multi30K, XTD10, OPUS in Moses form, and any other parallel files.
"""

import marshal
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice, zip_longest

from pydantic import Field, model_validator

from mclip_kit.config.yaml import Count, Section, suggest
from mclip_kit.data.corpora import Content, Corpus, Parts, Row, parse_options
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.images import without_number
from mclip_kit.data.languages import language_spellings
from mclip_kit.errors import DataError, RecipeError


class Part(Section):
    """Files that belong together line by line."""

    split: str | None = Field(None, description="Of all its rows; None: drawn by the corpus's `splits`.")
    texts: str | dict[str, str] = Field(
        description="The files' names, with {language} for a code, {pair} for two codes with a hyphen, {n} for the "
        "number of the caption; or a map from language to file."
    )
    captions: Count = Field(1, description="Number of files a language, if `texts` has {n}; they are numbered from 1.")
    images: str | None = Field(None, description="A file with the name of the picture of each line.")
    languages: list[str] | None = Field(None, description="Those of the corpus's languages that it has; None: all.")
    parallel: bool = Field(False, description="The lines are translations of each other.")
    rows: Count | None = Field(None, description="Number of lines of each file, if it never changes.")
    optional: bool = Field(False, description="The source may lack it, or some of its pairs.")

    @model_validator(mode="after")
    def _check_placeholders(self) -> "Part":
        if self.captions > 1 and "{n}" not in str(self.texts):
            raise ValueError("captions above 1 needs {n} in texts")
        if isinstance(self.texts, str) and not re.search(r"\{(language|pair)\}", self.texts):
            raise ValueError("texts has neither {language} nor {pair}, so that all languages would have the same lines")
        return self


class Options(Section):
    """Options of this reader."""

    parts: list[Part]


PartFiles = list[tuple[str, File]]
"""(language, file) for each text file of a part."""
Block = tuple[int, int, bytes]
"""The number of a part, the lines before, and lines of its files, which `marshal` packs fast."""
BLOCK = 2**11  # lines of a file that are given to a process at once
FEW = 4  # blocks that are read sooner without a process


def read(corpus: Corpus, source: Source) -> Content:
    """The rows of all parts, one after the other.

    Raises:
        DataError: a file is missing, or files of a part have different numbers of lines.
    """
    found = [item for part in parse_options(corpus, Options).parts for item in _find(part, corpus, source)]
    if not found:
        where = source.root or "options.parts"
        raise DataError(f"{where}: no files of this corpus in {', '.join(corpus.languages)}; {corpus.obtain}")
    parts = Parts(_blocks(found), partial(_rows, found), few=FEW)
    return Content(parts.rows(source.account), parts=parts)


def _find(part: Part, corpus: Corpus, source: Source) -> Iterator[tuple[Part, PartFiles, File | None]]:
    languages = [code for code in corpus.languages if part.languages is None or code in part.languages]
    paired = isinstance(part.texts, str) and "{pair}" in part.texts
    for together in [[languages[0], other] for other in languages[1:]] if paired else [languages]:
        columns = _text_files(part, together, source)
        lists = source.file(part.images) if part.images and columns else None
        if columns and (lists or not part.images):
            yield part, columns, lists
        elif together and not part.optional:
            source.require(part.images if columns and part.images else _patterns(part, together, together[0], 1)[0])


def _text_files(part: Part, languages: list[str], source: Source) -> PartFiles:
    """The text files of a part; empty if one is missing and the part is optional."""
    columns: PartFiles = []
    for language in languages:
        for number in range(1, part.captions + 1):
            patterns = _patterns(part, languages, language, number)
            file = source.file(*patterns) if part.optional else source.require(*patterns)
            if file is None:
                return []
            columns.append((language, file))
    return columns


def _patterns(part: Part, together: list[str], language: str, number: int) -> list[str]:
    """The names that a file may have, the most likely first."""
    if isinstance(part.texts, dict):
        if language not in part.texts:
            raise RecipeError(f"options.parts: texts names no file for {language}{suggest('', list(part.texts))}")
        return [part.texts[language]]
    spelled = [[(code, spelling) for spelling in language_spellings(code)] for code in together]
    pairs = [f"{a}-{b}" for _, a in spelled[0] for _, b in spelled[-1]] if len(together) == 2 else [""]
    pairs += ["-".join(reversed(pair.split("-"))) for pair in pairs]
    texts = part.texts.replace("{n}", str(number))
    names = [
        texts.replace("{language}", code).replace("{pair}", pair)
        for pair in pairs
        for code in language_spellings(language)
    ]
    return list(dict.fromkeys(names))


def _blocks(found: list[tuple[Part, PartFiles, File | None]]) -> Iterator[Block]:
    """The lines of all parts, at most BLOCK of each file at a time."""
    for number, (part, columns, images) in enumerate(found):
        files = [file for _, file in columns] + ([images] if images else [])
        lines, rows = zip_longest(*(file.lines() for file in files)), 0
        for together in iter(lambda lines=lines: list(islice(lines, BLOCK)), []):  # type: ignore[misc]
            if None in together[-1]:
                yield number, rows, marshal.dumps([several for several in together if None not in several])
                raise _different_lengths(files)
            yield number, rows, marshal.dumps(together)
            rows += len(together)
        if part.rows not in (None, rows):
            raise DataError(f"{files[0]}: {rows:,} lines, not {part.rows:,}; fetch it again")


def _rows(found: list[tuple[Part, PartFiles, File | None]], block: Block, account: Account) -> Iterator[Row]:
    number, before, together = block
    part, columns, images = found[number]
    languages, name = [language for language, _ in columns], None
    for row, lines in enumerate(marshal.loads(together), before + 1):
        if images:
            name = without_number(lines[-1])
            if not name:
                raise DataError(
                    f"{images} line {row}: the picture's name is missing; add it, or remove the line from all files"
                )
        texts = list(zip(languages, lines, strict=False))  # the last line may be the name of the picture
        yield Row(part.split or "", texts, image=name, parallel=part.parallel)


def _different_lengths(files: list[File]) -> DataError:
    counts = [(file, sum(1 for _ in file.lines())) for file in files]
    (first, most), (second, least) = max(counts, key=lambda pair: pair[1]), min(counts, key=lambda pair: pair[1])
    return DataError(
        f"{first}: {most:,} lines, but {second} has {least:,}; the numbers must be equal: fetch both again"
    )
