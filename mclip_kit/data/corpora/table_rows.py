"""What the rows of tables hold: the options of the reader `table`, and its rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from mclip_kit.config.yaml import Section, suggest
from mclip_kit.data.corpora import Row
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.corpora.beside import HEAD, is_picture
from mclip_kit.data.corpora.cells import NO_COLUMN, NamedPictures, as_split, as_texts, missing, name_of
from mclip_kit.data.corpora.records import CellError, Form, OpenTable
from mclip_kit.data.corpora.source import File
from mclip_kit.data.languages import language_spellings, normalize_language
from mclip_kit.errors import DataError, RecipeError


class Table(Form):
    """Files with the same columns."""

    file: str = Field(
        description="Its path below the source; with wildcards (* and ?), several files are read, sorted by name."
    )
    split: str = Field("", description="Of all its rows; empty: drawn by the corpus's `splits`.")
    optional: bool = Field(False, description="The source may lack it.")


class Options(Section):
    """Options of this reader. In .jsonl, .json and .parquet a column may be inside another: `en.caption`."""

    tables: list[Table]
    texts: str | dict[str, str | list[str]] | None = Field(
        None,
        description="The column of each language, with {language} for its code; or a map from language to its column "
        "or columns.",
    )
    text: str | None = Field(None, description="A column with text, in one language or in that of `language`.")
    language: str | None = Field(
        None, description="The column with the language code of `text`; None: the corpus's first language."
    )
    image: str | None = Field(
        None, description="The column with the picture's name, or in a .parquet with the picture itself."
    )
    content: str | None = Field(None, description="The column of a .parquet with the picture that `image` names.")
    split: str | None = Field(None, description="The column with the split; None: all rows are in the table's `split`.")
    splits: dict[str, str] = Field({}, description="A name in that column -> train, valid or test.")
    only: dict[str, str] = Field({}, description="Column -> the value that a row must have; other rows are left out.")
    parallel: bool = Field(False, description="The texts of a row are translations of each other.")

    @model_validator(mode="after")
    def _check_columns(self) -> "Options":
        if self.texts is None and self.text is None:
            raise ValueError("give texts (a column for each language), text (one column), or both")
        if self.language is not None and self.text is None:
            raise ValueError("language is the language of `text`, which is missing")
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
        texts: (language, cells that may hold a text in it): the first one that is not None is used.
        named: the cells with the language code and its text, and the wanted languages.
        image, content, split: the cells with the name of the picture, its file, and the split.
        only: (column, its cell, the value that it must have).
    """

    texts: list[tuple[str, list[GetCell]]]
    named: tuple[GetCell, GetCell, set[str]] | None
    image: GetCell | None
    content: GetCell | None
    split: GetCell | None
    only: list[tuple[str, GetCell, str]]


class TableRows:
    """The rows of one file."""

    def __init__(
        self,
        table: Table,
        file: File,
        opened: OpenTable,
        chosen: Options,
        languages: list[str],
        pictures: NamedPictures,
    ) -> None:
        self.table, self.file, self.opened, self.chosen = table, file, opened, chosen
        names = _text_columns(chosen, languages, opened.names)
        self.columns = _columns(chosen, names, languages, opened, file)
        self.wanted = {name for _, several in names for name in several}
        named = (chosen.text, chosen.language, chosen.image, chosen.content, chosen.split, *chosen.only)
        self.texts_in = self.wanted | ({chosen.text} if chosen.text else set())
        self.wanted |= {name for name in named if name}
        self._taken = {*self.wanted, *(name.partition(".")[0] for name in self.wanted)}
        self.splits, self.pictures = chosen.splits, pictures
        self.name, self.where = file.name, f"{file} {opened.unit}"  # once: there are many rows

    def unread(self, columns: Iterable[str]) -> list[str]:
        """Those columns that are not taken."""
        return [name for name in columns if name not in self._taken]

    def rows(self, rows: Iterable[tuple[int, Any]], account: Account) -> Iterator[Row]:
        """Those of some numbered rows that have a text; the others are counted."""
        for number, row in rows:
            try:
                found = self._row(row, number, account)
            except CellError as wrong:
                raise DataError(f"{self.file} {self.opened.unit} {number}: {wrong}") from None
            if isinstance(found, Row):
                yield found
            else:
                account.leave_out(found, f"{self.where} {number}")

    def check(self, last: Any) -> None:
        """Raise an error if the last row of a file, of which no row was kept, has no column with a text."""
        if not any(name.partition(".")[0] in last for name in self.texts_in):
            there = suggest("", list(last))
            raise DataError(
                f"{self.file}: no {self.opened.unit} has a text in {' or '.join(sorted(self.texts_in))}{there}"
            )

    def _row(self, row: Any, number: int, account: Account) -> Row | str:
        """What a row holds, or why it is left out."""
        columns, chosen = self.columns, self.chosen
        for column, cell, value in columns.only:
            if str(cell(row)) != value:
                return f"rows whose {column} is not {value}"
        found = self._texts(row)
        if isinstance(found, str):
            return found
        texts, blank = found
        if not texts:
            return "rows without a text"
        image = content = None
        if columns.image:
            inside = columns.content(row) if columns.content else NO_COLUMN
            image, content = self.pictures.name(columns.image(row), inside, f"{self.name} {number}")
            if image is None:
                return "rows without a picture"
            if content is not None and not is_picture(content[:HEAD], lambda: content):
                return "rows whose picture is none"
        split = self.table.split
        if columns.split:
            value = columns.split(row)
            if missing(value):
                return "rows without a split"
            split = as_split(name_of(value, "split"), self.splits)
        for language in blank:
            account.add_empty(language, f"{self.where} {number}")
        return Row(split, texts, image=image, content=content, parallel=chosen.parallel)

    def _texts(self, row: Any) -> tuple[list[tuple[str, str]], list[str]] | str:
        """The texts of a row and the languages of those that are empty; or why the row is left out."""
        cells = self.columns.texts
        if self.columns.named:
            language, text, wanted = self.columns.named
            if missing(language(row)):
                return "rows without a language"
            code = normalize_language(name_of(language(row), "language"))
            if code not in wanted:
                return f"rows in {code}, which is not one of the languages"
            cells = [*cells, (code, [text])]
        texts, blank = [], []
        for code, picks in cells:
            value = next((value for pick in picks if (value := pick(row)) is not None), None)
            for found in as_texts(code, value):
                if found.strip() or (self.chosen.parallel and value is not None):
                    texts.append((code, found))
                else:
                    blank.append(code)
        return (texts if any(text.strip() for _, text in texts) else []), blank


def _text_columns(chosen: Options, languages: list[str], names: list[str] | None) -> list[tuple[str, list[str]]]:
    """(language, the columns that may hold its text): exactly one if the file has a header."""
    first = [(languages[0], [chosen.text])] if chosen.text and not chosen.language else []
    if chosen.texts is None:
        return first
    if isinstance(chosen.texts, dict):
        known = {*chosen.texts, *(code for code, _ in first)}
        lacking = [code for code in languages if code not in known and not chosen.language]
        if lacking:
            raise RecipeError(f"options.texts names no column for {lacking[0]}{suggest('', list(chosen.texts))}")
        return first + [
            (code, [column])
            for code, columns in chosen.texts.items()
            if code in languages
            for column in ([columns] if isinstance(columns, str) else columns)
        ]
    places = [
        (code, [chosen.texts.replace("{language}", other) for other in language_spellings(code)]) for code in languages
    ]
    if names is None:
        return first + places
    return first + [(code, [*(p for p in several if p in names), several[0]][:1]) for code, several in places]


def _columns(
    chosen: Options, texts: list[tuple[str, list[str]]], languages: list[str], opened: OpenTable, file: File
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
        texts=[(language, [pick(name) for name in names]) for language, names in texts],
        named=(pick(chosen.language), pick(str(chosen.text)), set(languages)) if chosen.language else None,
        image=pick(chosen.image) if chosen.image else None,
        content=pick(chosen.content) if chosen.content else None,
        split=pick(chosen.split) if chosen.split else None,
        only=[(column, pick(column), value) for column, value in chosen.only.items()],
    )
