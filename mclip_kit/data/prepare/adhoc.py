"""Declarations for a user's own files, like those of `data_prep/` for published corpora."""

import re
from pathlib import Path
from typing import Any

from mclip_kit.data import corpora
from mclip_kit.data.corpora import folder as folder_reader
from mclip_kit.data.corpora import webdataset
from mclip_kit.data.corpora.records import open_table
from mclip_kit.data.corpora.source import File
from mclip_kit.data.languages import TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import DataError, RecipeError

COLUMNS = {
    "image": {"image", "image_path", "image_id", "file", "filename", "file_name", "filepath", "path"},
    "text": {"caption", "text", "title"},
    "language": {"language", "lang", "locale"},
    "split": {"split"},
}
"""What a column holds -> names that tables give it."""
NO_LANGUAGES = {"id", "no", "idx", "key", "len", "num", "ref", "row", "src", "tgt", "uid", "uri", "url"}
"""Column names that look like language codes, but seldom are."""
CODE = re.compile(r"[a-z]{2,3}(_[a-z]{2,4})?")

Declared = tuple[str, dict[str, Any]]
"""A name for the prepared folder, and the content that a YAML file would have."""


def declare(
    files: list[str],
    table: Path | None,
    shards: str | None,
    folder: Path | None,
    languages: list[str],
    source: Path | None = None,
) -> Declared:
    """The declaration of a table, shards or a folder, whichever is given; else of parallel files.

    Args:
        files: of parallel text, as LANG=FILE.
        table: a .tsv, .csv, .jsonl or .parquet.
        shards: a pattern of webdataset tars.
        folder: of pictures.
        languages: codes, as the user spells them; empty: they are read from the files.
        source: the folder that the pattern of the shards starts from; None: the current one.
    Raises:
        RecipeError: it is not clear which languages the files or columns hold.
        DataError: the table cannot be read, or its language column holds something else.
    """
    codes = [normalize_language(language) for language in languages]
    if table is not None:
        return _table(table, codes)
    if shards is not None:
        if not shards:
            raise RecipeError("--webdataset names no shards; write them as in 'shards-{000..099}.tar'")
        return _name(shards), _tree(
            "webdataset", codes or webdataset.find_languages(shards, source), {"shards": shards}
        )
    if folder is not None:
        return folder.resolve().name, _tree("folder", codes or folder_reader.find_languages(folder), {})
    if codes:
        raise RecipeError("--bitext takes its languages from LANG=FILE, as in en=train.en; leave --langs out")
    return _bitext(files)


def _tree(reader: str, languages: list[str], options: dict[str, Any]) -> dict[str, Any]:
    return {
        "about": "files of your own",
        "reader": reader,
        "languages": languages,
        "licences": [],
        "obtain": "check the paths that you gave",
        "options": options,
    }


def _bitext(files: list[str]) -> Declared:
    texts: dict[str, str] = {}
    for item in files:
        language, separator, file = item.partition("=")
        code = normalize_language(language)
        if not separator or not file or not code:
            raise RecipeError(f"--bitext {item}: write LANG=FILE, as in --bitext en=train.en de=train.de")
        if code in texts:
            raise RecipeError(f"--bitext {item}: {code} is given twice")
        if not Path(file).is_file():
            raise RecipeError(f"--bitext {item}: there is no such file")
        texts[code] = str(Path(file).absolute())
    if len(texts) < 2:
        raise RecipeError("--bitext needs two languages at least, as in --bitext en=train.en de=train.de")
    return "-".join(texts), _tree("lines", list(texts), {"parts": [{"texts": texts, "parallel": True}]})


def _table(table: Path, languages: list[str]) -> Declared:
    """A table with a column a language; or with columns for picture and caption, and maybe language and split."""
    file = str(table.absolute())
    names = _columns(table)
    found = {what: next((name for name in names if name.lower() in known), None) for what, known in COLUMNS.items()}
    options: dict[str, Any] = {"tables": [{"file": file}], "split": found["split"]}
    if found["image"] and found["text"]:
        options |= {key: found[key] for key in ("image", "text", "language")}
        languages = languages or (_codes(table, found["language"]) if found["language"] else [TEACHER_LANGUAGE])
    else:
        columns = {normalize_language(name): name for name in names if CODE.fullmatch(normalize_language(name))}
        doubtful = [columns[code] for code in columns if code in NO_LANGUAGES]
        if doubtful and not languages:
            raise RecipeError(f"{table}: is column {doubtful[0]} a language? Name the language columns: --langs en,de")
        languages = languages or list(columns)
        if len(languages) < 2 or set(languages) - set(columns):
            raise RecipeError(
                f"{table}: columns are {', '.join(names) or 'none'}; name them image and caption (and language, "
                "split), or after the languages of parallel texts, such as en and de"
            )
        options |= {"texts": {code: columns[code] for code in languages}, "parallel": True}
    return _name(str(table)), _tree("table", languages, options)


def _columns(table: Path) -> list[str]:
    opened = open_table(File(table), None, None, None)
    return opened.names if opened.names is not None else list(next((row for _, row in opened.read([])), {}))


def _codes(table: Path, column: str) -> list[str]:
    """The languages that occur in a column, English first."""
    opened = open_table(File(table), None, None, None)
    pick = opened.pick(column)
    codes = set()
    for number, row in opened.read([column]):
        code = normalize_language(str(pick(row)))
        if code not in codes and not corpora.CODE.fullmatch(code):
            where = f"{table} {opened.unit} {number}: {column} is {pick(row)!r}"
            raise DataError(f"{where}, not a code such as en or pt_br; fix it, or choose languages with --langs")
        codes.add(code)
    return sorted(codes, key=lambda code: (code != TEACHER_LANGUAGE, code))


def _name(path: str) -> str:
    """A name for the prepared folder, from the path or pattern of its source."""
    stem = Path(path).name.partition(".")[0]
    kept = "".join(letter if letter.isalnum() or letter in "-_" else " " for letter in stem.partition("{")[0])
    return kept.strip(" -_").replace(" ", "_") or "own"
