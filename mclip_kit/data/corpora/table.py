"""Reads tables: rows with named columns, from .tsv, .csv, .jsonl and .parquet.

Crossmodal-3600, Conceptual Captions, WIT, sentence pairs with a column a language, and most data sets of a hub.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from mclip_kit.config.yaml import Section, suggest
from mclip_kit.data.corpora import SPLIT, Content, Corpus, Row, parse_options
from mclip_kit.data.corpora.records import CellError, Format, OpenTable, open_table
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.languages import language_spellings, normalize_language
from mclip_kit.errors import DataError, RecipeError

SPLITS = {"val": "valid", "dev": "valid", "validation": "valid"}


class Table(Section):
    """Files with the same columns."""

    file: str = Field(
        description="Its path below the source; with wildcards (* and ?), several files are read, sorted by name."
    )
    split: str = Field("", description="Of all its rows; empty: drawn by the corpus's `splits`.")
    header: list[str] | None = Field(None, description="Names of the columns of a .tsv or .csv without a header line.")
    format: Format | None = Field(None, description="None: by the ending of the file's name.")
    quotes: bool | None = Field(None, description="Whether quotes enclose cells; None: in a .csv, not in a .tsv.")
    optional: bool = Field(False, description="The source may lack it.")


class Options(Section):
    """Options of this reader. In .jsonl and .parquet a column may be inside another: `en.caption`."""

    tables: list[Table]
    texts: str | dict[str, str] | None = Field(
        None, description="The column of each language, with {language} for its code; or a map from language to column."
    )
    text: str | None = Field(None, description="A column with text in one language.")
    language: str | None = Field(
        None, description="The column with the language code of `text`; None: the corpus's first language."
    )
    image: str | None = Field(None, description="The column with the picture's name.")
    split: str | None = Field(None, description="The column with the split; None: all rows are in the table's `split`.")
    splits: dict[str, str] = Field({}, description="A name in that column -> train, valid or test.")
    parallel: bool = Field(False, description="The texts of a row are translations of each other.")

    @model_validator(mode="after")
    def _check_columns(self) -> "Options":
        if self.texts is None and self.text is None:
            raise ValueError("give texts (a column for each language), text (one column), or both")
        if self.language is not None and self.text is None:
            raise ValueError("language is the language of `text`, which is missing")
        if self.text is not None and self.texts is not None and self.language is None:
            raise ValueError("text together with texts needs `language`")
        if self.parallel and self.texts is None:
            raise ValueError("parallel needs texts: a column for each language")
        if isinstance(self.texts, str) and "{language}" not in self.texts:
            raise ValueError("texts has no {language}; a single column is called text")
        return self


GetCell = Callable[[Any], Any]
"""From a row to one of its cells."""


@dataclass(frozen=True)
class Columns:
    """Which cells of a row hold what.

    Attributes:
        texts: language -> cells that may hold its text; the first one that is not None is used.
        named: the cells with the language code and its text, and the wanted languages.
        image, split: the cells with the name of the picture and of the split.
    """

    texts: dict[str, list[GetCell]]
    named: tuple[GetCell, GetCell, set[str]] | None
    image: GetCell | None
    split: GetCell | None


def read(corpus: Corpus, source: Source) -> Content:
    """The rows of all tables, one after the other.

    Raises:
        DataError: a file is missing or damaged, or a row or column is wrong.
    """
    chosen = parse_options(corpus, Options)
    found = [(table, file) for table in chosen.tables for file in _files(table, source)]
    if not found:
        raise DataError(f"{source.root}: no table of this corpus in it; {corpus.obtain}")
    languages = [*corpus.languages, *corpus.caption_languages]
    return Content(row for table, file in found for row in _rows(table, file, chosen, languages))


def _files(table: Table, source: Source) -> list[File]:
    found = source.files(table.file)
    return found if found or table.optional else [source.require(table.file)]


def _rows(table: Table, file: File, chosen: Options, languages: list[str]) -> Iterator[Row]:
    opened = open_table(file, table.format, table.header, table.quotes)
    names = _text_columns(chosen, languages, opened.names)
    columns = _columns(chosen, names, languages, opened, file)
    splits = SPLITS | chosen.splits
    wanted = {name for several in names.values() for name in several} | ({chosen.text} if chosen.text else set())
    textless, has_text = None, False  # a row without texts; whether another row has some
    for number, row in opened.read(wanted | {name for name in (chosen.language, chosen.image, chosen.split) if name}):
        try:
            texts = _texts(row, columns)
            if texts is None:
                continue
            image = _name(columns.image(row), "picture") if columns.image else None
            split = _split(_name(columns.split(row), "split"), splits) if columns.split else table.split
        except CellError as wrong:
            raise DataError(f"{file} {opened.unit} {number}: {wrong}") from None
        if any(text for _, text in texts):
            has_text = True
            yield Row(split, texts, image=image, parallel=chosen.parallel)
        else:
            textless = row
    if textless is not None and not has_text and opened.names is None:
        raise DataError(f"{file}: no line has a text in {' or '.join(sorted(wanted))}{suggest('', list(textless))}")


def _text_columns(chosen: Options, languages: list[str], names: list[str] | None) -> dict[str, list[str]]:
    """Language -> the columns that may hold its text; exactly one if the file has a header."""
    if chosen.texts is None:
        return {} if chosen.language else {languages[0]: [str(chosen.text)]}
    if isinstance(chosen.texts, dict):
        missing = [code for code in languages if code not in chosen.texts and not chosen.language]
        if missing:
            raise RecipeError(f"options.texts names no column for {missing[0]}{suggest('', list(chosen.texts))}")
        return {code: [column] for code, column in chosen.texts.items() if code in languages}
    places = {
        code: [chosen.texts.replace("{language}", other) for other in language_spellings(code)] for code in languages
    }
    if names is None:
        return places
    return {code: [*(p for p in several if p in names), several[0]][:1] for code, several in places.items()}


def _columns(
    chosen: Options, texts: dict[str, list[str]], languages: list[str], opened: OpenTable, file: File
) -> Columns:
    """Where the cells are.

    Raises:
        DataError: the file has a header, and a column is not in it.
    """

    def pick(name: str) -> GetCell:
        if opened.names is not None and name not in opened.names:
            raise DataError(f"{file}: there is no column {name!r}{suggest(name, opened.names)}")
        return opened.pick(name)

    return Columns(
        texts={language: [pick(name) for name in names] for language, names in texts.items()},
        named=(pick(chosen.language), pick(str(chosen.text)), set(languages)) if chosen.language else None,
        image=pick(chosen.image) if chosen.image else None,
        split=pick(chosen.split) if chosen.split else None,
    )


def _texts(row: Any, columns: Columns) -> list[tuple[str, str]] | None:
    """The texts of a row; None if its language is not wanted."""
    cells = columns.texts
    if columns.named:
        language, text, wanted = columns.named
        code = normalize_language(_name(language(row), "language"))
        if code not in wanted:
            return None
        cells = {**cells, code: [*cells.get(code, ()), text]}
    texts = []
    for code, picks in cells.items():
        for pick in picks:
            value = pick(row)
            if value is not None:
                texts += [(code, value)] if isinstance(value, str) else _caption_list(code, value)
                break
    return texts


def _caption_list(language: str, value: Any) -> list[tuple[str, str]]:
    """The captions of a cell that holds a list."""
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise CellError(f"the text in {language} is {str(text)[:50]!r}, not a string; fix it, or remove the row")
    return [(language, text) for text in texts]


def _name(value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise CellError(f"the {what} is {str(value)[:50]!r}, not a name; fix it, or remove the row")
    return value.strip()


def _split(name: str, splits: dict[str, str]) -> str:
    split = splits.get(name, name)
    if not SPLIT.fullmatch(split):
        raise CellError(f"split {name!r} is none of train, valid and test; map it to one of them in options.splits")
    return split
