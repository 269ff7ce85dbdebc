"""Files whose lines belong together: one file a language, and perhaps a list of pictures.

Multi30K, XTD10, OPUS in Moses form, and any other pair of files.
"""

import re
from collections.abc import Iterator
from itertools import zip_longest

from pydantic import Field, model_validator

from mclip_kit.config.yaml import Count, Section, suggest
from mclip_kit.data.corpora import Content, Corpus, Row, options
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.languages import spellings
from mclip_kit.errors import DataError, RecipeError


class Part(Section):
    """Files that line up."""

    split: str | None = Field(None, description="Of all its rows; none: drawn by the corpus's `splits`.")
    texts: str | dict[str, str] = Field(
        description="Where the lines are, with {language} for its code, {pair} for two with a hyphen, {n} for the "
        "number of the caption; or language: file."
    )
    captions: Count = Field(1, description="Files a language, numbered from 1 on, where `texts` has {n}.")
    images: str | None = Field(None, description="A file with the name of each line's picture.")
    languages: list[str] | None = Field(None, description="Those of the corpus's that it has; none: all.")
    parallel: bool = Field(False, description="The lines are translations of each other.")
    rows: Count | None = Field(None, description="How many lines each file has.")
    optional: bool = Field(False, description="A source may lack it, or some of its pairs.")

    @model_validator(mode="after")
    def _numbered_files_have_numbers(self) -> "Part":
        if self.captions > 1 and "{n}" not in str(self.texts):
            raise ValueError("several captions need {n} in texts")
        if isinstance(self.texts, str) and not re.search(r"\{(language|pair)\}", self.texts):
            raise ValueError("texts has neither {language} nor {pair}, so that all languages would have the same lines")
        return self


class Options(Section):
    """What the reader takes."""

    parts: list[Part]


Columns = list[tuple[str, File]]
"""(language, file) for each file of a part."""


def read(corpus: Corpus, source: Source) -> Content:
    """Rows of all parts, one after the other."""
    found = [item for part in options(corpus, Options).parts for item in _find(part, corpus, source)]
    if not found:
        where = source.root or "options.parts"
        raise DataError(f"{where}: nothing of this corpus in {', '.join(corpus.languages)}; {corpus.obtain}")
    return Content(row for part, columns, images in found for row in _rows(part, columns, images))


def _find(part: Part, corpus: Corpus, source: Source) -> Iterator[tuple[Part, Columns, File | None]]:
    languages = [code for code in corpus.languages if part.languages is None or code in part.languages]
    paired = isinstance(part.texts, str) and "{pair}" in part.texts
    for together in [[languages[0], other] for other in languages[1:]] if paired else [languages]:
        columns = _columns(part, together, source)
        lists = source.file(part.images) if part.images and columns else None
        if columns and (lists or not part.images):
            yield part, columns, lists
        elif together and not part.optional:
            source.need(part.images if columns and part.images else _patterns(part, together, together[0], 1)[0])


def _columns(part: Part, languages: list[str], source: Source) -> Columns:
    """Its files; none at all if one is missing and the part is optional."""
    columns: Columns = []
    for language in languages:
        for number in range(1, part.captions + 1):
            patterns = _patterns(part, languages, language, number)
            file = source.file(*patterns) if part.optional else source.need(*patterns)
            if file is None:
                return []
            columns.append((language, file))
    return columns


def _patterns(part: Part, together: list[str], language: str, number: int) -> list[str]:
    """The names that a file may have, in the order of likelihood."""
    if isinstance(part.texts, dict):
        if language not in part.texts:
            raise RecipeError(f"options.parts: texts names no file for {language}{suggest('', list(part.texts))}")
        return [part.texts[language]]
    spelled = [[(code, spelling) for spelling in spellings(code)] for code in together]
    pairs = [f"{a}-{b}" for _, a in spelled[0] for _, b in spelled[-1]] if len(together) == 2 else [""]
    pairs += ["-".join(reversed(pair.split("-"))) for pair in pairs]
    texts = part.texts.replace("{n}", str(number))
    names = [
        texts.replace("{language}", code).replace("{pair}", pair) for pair in pairs for code in spellings(language)
    ]
    return list(dict.fromkeys(names))


def _rows(part: Part, columns: Columns, images: File | None) -> Iterator[Row]:
    files = [file for _, file in columns] + ([images] if images else [])
    languages = [language for language, _ in columns]
    rows, name = 0, None
    for lines in zip_longest(*(file.lines() for file in files)):
        if None in lines:
            raise _uneven(files)
        rows += 1
        if images:
            name = lines[-1].strip().partition("#")[0]
            if not name:
                raise DataError(f"{images} line {rows}: no picture's name; give it, or remove the line from all files")
        texts = list(zip(languages, lines, strict=False))  # the last line may be the picture's
        yield Row(part.split or "", texts, image=name, parallel=part.parallel)
    if part.rows not in (None, rows):
        raise DataError(f"{files[0]}: {rows:,} lines, not {part.rows:,}; fetch it again")


def _uneven(files: list[File]) -> DataError:
    counts = [(file, sum(1 for _ in file.lines())) for file in files]
    (first, most), (second, least) = max(counts, key=lambda pair: pair[1]), min(counts, key=lambda pair: pair[1])
    return DataError(f"{first}: {most:,} lines, but {second} has {least:,}: they do not line up; fetch both again")
