"""Declarations for a user's own files, like those of `data_prep/` for published corpora."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mclip_kit.config.yaml import overridden
from mclip_kit.data.corpora import folder as folder_reader
from mclip_kit.data.corpora import webdataset
from mclip_kit.data.languages import normalize_language
from mclip_kit.data.prepare.adhoc_table import describe_table
from mclip_kit.errors import RecipeError
from mclip_kit.storage import fetch, place

SPLITS = {"valid": 0.05, "test": 0.05}
"""Held-out shares of rows that have no split."""

Declared = tuple[str, dict[str, Any]]
"""A name for the prepared folder, and the content that a YAML file would have."""


def declare(
    files: list[str],
    table: Path | None,
    shards: str | None,
    folder: Path | None,
    languages: list[str],
    source: Path | None = None,
    overrides: Sequence[str] = (),
) -> Declared:
    """The declaration of a table, shards or a folder, whichever is given; else of parallel files.

    Args:
        files: of parallel text, as LANG=FILE.
        table: a .tsv, .csv, .jsonl, .json, .parquet or .xlsx.
        shards: a pattern of webdataset tars.
        folder: of pictures.
        languages: codes, as the user spells them; empty: they are read from the files.
        overrides: `key.path=value` each; those about a table's form count before its columns are read.
        source: the folder that the pattern of the shards starts from; None: the current one.
    Raises:
        RecipeError: it is not clear which languages the files or columns hold.
        DataError: the table cannot be read, or its language column holds something else.
    """
    codes = [normalize_language(language) for language in languages]
    if table is not None:
        return _table(table, codes, overrides)
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
        "splits": dict(SPLITS),
        "held_out": 5000,
        "cleaning": {"leaks": "drop"},
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
        if not fetch(place(file)).is_file():
            raise RecipeError(f"--bitext {item}: there is no such file")
        texts[code] = str(place(file).absolute())
    if len(texts) < 2:
        raise RecipeError("--bitext needs two languages at least, as in --bitext en=train.en de=train.de")
    return "-".join(texts), _tree("lines", list(texts), {"parts": [{"texts": texts, "parallel": True}]})


def _table(table: Path, languages: list[str], overrides: Sequence[str]) -> Declared:
    """A table; what the user has chosen with --set is known before its columns are read."""
    tree = _tree("table", languages, {"tables": [{"file": str(table.absolute())}]})
    chosen = overridden(tree, [item for item in overrides if item.startswith(("options.", "languages="))])
    if chosen["reader"] != "table" or not isinstance(chosen["options"].get("tables"), list):
        raise RecipeError("--pairs: options.tables is a list with one table; set keys of it: options.tables.0.KEY")
    wanted = [normalize_language(str(code)) for code in chosen["languages"]]
    reader, found, options = describe_table(table, wanted, chosen["options"])
    if reader == "table":
        options = {**chosen["options"], **{key: value for key, value in options.items() if value is not None}}
    return _name(str(table)), _tree(reader, found, options)


def _name(path: str) -> str:
    """A name for the prepared folder, from the path or pattern of its source."""
    stem = Path(path).name.partition(".")[0]
    kept = "".join(letter if letter.isalnum() or letter in "-_" else " " for letter in stem.partition("{")[0])
    return kept.strip(" -_").replace(" ", "_") or "own"
