"""Tables: rows with named columns, from .tsv, .csv, .jsonl and .parquet.

Crossmodal-3600, Conceptual Captions, WIT, sentence pairs with a column a language, and most data sets of a hub.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from mclip_kit.config.yaml import Section, suggest
from mclip_kit.data.corpora import SPLIT, Content, Corpus, Row, options
from mclip_kit.data.corpora.records import Format, Rows, WrongCell, open_rows
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.languages import normal, spellings
from mclip_kit.errors import DataError, RecipeError

SPLITS = {"val": "valid", "dev": "valid", "validation": "valid"}


class Table(Section):
    """Files with the same columns."""

    file: str = Field(description="Where it is; with wildcards, several files are read in order of their names.")
    split: str = Field("", description="Of all its rows; none: drawn by the corpus's `splits`.")
    header: list[str] | None = Field(None, description="Names of the columns of a .tsv or .csv without a header.")
    format: Format | None = Field(None, description="None: as the file's name ends.")
    quotes: bool | None = Field(None, description="Whether quotes enclose cells; none: in a .csv, not in a .tsv.")
    optional: bool = Field(False, description="A source may lack it.")


class Options(Section):
    """What the reader takes. In .jsonl and .parquet a column may be inside another: `en.caption`."""

    tables: list[Table]
    texts: str | dict[str, str] | None = Field(
        None, description="The column of each language, with {language} for its code; or language: column."
    )
    text: str | None = Field(None, description="A column with text in one language.")
    language: str | None = Field(None, description="The column with its code; none: it is the corpus's first.")
    image: str | None = Field(None, description="The column with the picture's name.")
    split: str | None = Field(None, description="The column with the split; none: that of the table.")
    splits: dict[str, str] = Field({}, description="What that column calls a split -> train, valid, test.")
    parallel: bool = Field(False, description="The texts of a row are translations of each other.")

    @model_validator(mode="after")
    def _texts_are_told_apart(self) -> "Options":
        if self.texts is None and self.text is None:
            raise ValueError("one of texts (a column for each language) and text (one column) is missing")
        if self.language is not None and self.text is None:
            raise ValueError("language says what language `text` is in, which is missing")
        if self.text is not None and self.texts is not None and self.language is None:
            raise ValueError("text beside texts needs `language`")
        if self.parallel and self.texts is None:
            raise ValueError("parallel needs texts: a column for each language")
        if isinstance(self.texts, str) and "{language}" not in self.texts:
            raise ValueError("texts has no {language}; a single column is called text")
        return self


Pick = Callable[[Any], Any]


@dataclass(frozen=True)
class Columns:
    """Where a row of a file has what.

    Attributes:
        texts: language -> its cells; the first that holds something is taken.
        named: (code, text) of the column whose language each row names, and the languages that are wanted.
    """

    texts: dict[str, list[Pick]]
    named: tuple[Pick, Pick, set[str]] | None
    image: Pick | None
    split: Pick | None


def read(corpus: Corpus, source: Source) -> Content:
    """Rows of all tables, one after the other."""
    chosen = options(corpus, Options)
    found = [(table, file) for table in chosen.tables for file in _files(table, source)]
    if not found:
        raise DataError(f"{source.root}: no table of this corpus is here; {corpus.obtain}")
    languages = [*corpus.languages, *corpus.caption_languages]
    return Content(row for table, file in found for row in _rows(table, file, chosen, languages))


def _files(table: Table, source: Source) -> list[File]:
    found = source.files(table.file)
    return found if found or table.optional else [source.need(table.file)]


def _rows(table: Table, file: File, chosen: Options, languages: list[str]) -> Iterator[Row]:
    rows = open_rows(file, table.format, table.header, table.quotes)
    places = _places(chosen, languages, rows.names)
    columns = _columns(chosen, places, languages, rows, file)
    splits = SPLITS | chosen.splits
    wanted = {place for several in places.values() for place in several} | ({chosen.text} if chosen.text else set())
    silent, answered = None, False  # a row without texts; whether another has some
    for number, row in rows.read(wanted | {name for name in (chosen.language, chosen.image, chosen.split) if name}):
        try:
            texts = _texts(row, columns)
            if texts is None:
                continue
            image = _name(columns.image(row), "picture") if columns.image else None
            split = _split(_name(columns.split(row), "split"), splits) if columns.split else table.split
        except WrongCell as wrong:
            raise DataError(f"{file} {rows.unit} {number}: {wrong}") from None
        if any(text for _, text in texts):
            answered = True
            yield Row(split, texts, image=image, parallel=chosen.parallel)
        else:
            silent = row
    if silent is not None and not answered and rows.names is None:
        raise DataError(f"{file}: no line has a text in {' or '.join(sorted(wanted))}{suggest('', list(silent))}")


def _places(chosen: Options, languages: list[str], names: list[str] | None) -> dict[str, list[str]]:
    """Language -> the columns that may hold its text: one, where the file has a header."""
    if chosen.texts is None:
        return {} if chosen.language else {languages[0]: [str(chosen.text)]}
    if isinstance(chosen.texts, dict):
        missing = [code for code in languages if code not in chosen.texts and not chosen.language]
        if missing:
            raise RecipeError(f"options.texts names no column for {missing[0]}{suggest('', list(chosen.texts))}")
        return {code: [column] for code, column in chosen.texts.items() if code in languages}
    places = {code: [chosen.texts.replace("{language}", other) for other in spellings(code)] for code in languages}
    if names is None:
        return places
    return {code: [*(p for p in several if p in names), several[0]][:1] for code, several in places.items()}


def _columns(chosen: Options, places: dict[str, list[str]], languages: list[str], rows: Rows, file: File) -> Columns:
    """Raises DataError if the file has a header, and a column is not in it."""

    def pick(name: str) -> Pick:
        if rows.names is not None and name not in rows.names:
            raise DataError(f"{file}: there is no column {name!r}{suggest(name, rows.names)}")
        return rows.pick(name)

    return Columns(
        texts={language: [pick(name) for name in names] for language, names in places.items()},
        named=(pick(chosen.language), pick(str(chosen.text)), set(languages)) if chosen.language else None,
        image=pick(chosen.image) if chosen.image else None,
        split=pick(chosen.split) if chosen.split else None,
    )


def _texts(row: Any, columns: Columns) -> list[tuple[str, str]] | None:
    """The texts of a row; None if it names another language than those that are wanted."""
    cells = columns.texts
    if columns.named:
        language, text, wanted = columns.named
        code = normal(_name(language(row), "language"))
        if code not in wanted:
            return None
        cells = {**cells, code: [*cells.get(code, ()), text]}
    texts = []
    for code, picks in cells.items():
        for pick in picks:
            value = pick(row)
            if value is not None:
                texts += [(code, value)] if isinstance(value, str) else _several(code, value)
                break
    return texts


def _several(language: str, value: Any) -> list[tuple[str, str]]:
    """The captions of a list."""
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise WrongCell(f"the text in {language} is {str(text)[:50]!r}, not a string; mend it, or remove the row")
    return [(language, text) for text in texts]


def _name(value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise WrongCell(f"the {what} is {str(value)[:50]!r}, not a name; mend it, or remove the row")
    return value.strip()


def _split(name: str, splits: dict[str, str]) -> str:
    split = splits.get(name, name)
    if not SPLIT.fullmatch(split):
        raise WrongCell(f"split {name!r} is none of train, valid and test; say which it is in options.splits")
    return split
