"""Tables come back row by row, whatever their form, and a wrong cell is named with its file and line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mclip_kit.data.corpora import Corpus, Row
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.corpora.table import read
from mclip_kit.errors import DataError, RecipeError

ROWS = [
    {"image": "a.jpg", "split": "train", "en": 'a "big", dog', "de": "ein Hund"},
    {"image": "b.jpg", "split": "dev", "en": "a cat", "de": ""},
    {"image": "c.jpg", "split": "test_x", "en": "  ", "de": "ein Fuchs\u2028im Feld"},
]
LANGUAGES = ("en", "de")


def corpus(languages: tuple[str, ...] = LANGUAGES, more: tuple[str, ...] = (), **options: Any) -> Corpus:
    """A declaration with these options."""
    return Corpus(
        about="a table",
        reader="table",
        languages=list(languages),
        caption_languages=list(more),
        licences=[],
        obtain="made here",
        options=options,
    )


def rows(folder: Path, declared: Corpus) -> list[Row]:
    """What the reader finds."""
    return list(read(declared, Source(folder)).rows)


def texts(folder: Path, declared: Corpus) -> list[list[tuple[str, str]]]:
    """Texts alone."""
    return [row.texts for row in rows(folder, declared)]


def put(folder: Path, name: str, text: str) -> Path:
    """A text file."""
    path = folder / name
    path.write_bytes(text.encode())
    return path


def as_tsv(header: bool = True) -> str:
    """The rows between tabs."""
    lines = [list(ROWS[0])] * header + [list(row.values()) for row in ROWS]
    return "\n".join("\t".join(line) for line in lines) + "\n"


def as_csv() -> str:
    """The rows between commas, with quotes where they are needed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def as_jsonl() -> str:
    """The rows as objects."""
    return "\n".join(json.dumps(row) for row in ROWS)


def as_parquet(path: Path, made: list[dict[str, Any]]) -> Path:
    """Rows as a .parquet in groups of two."""
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(made), path, row_group_size=2)
    return path


WANTED = [
    Row("train", [("en", 'a "big", dog'), ("de", "ein Hund")], image="a.jpg", parallel=True),
    Row("valid", [("en", "a cat"), ("de", "")], image="b.jpg", parallel=True),
    Row("test_x", [("en", "  "), ("de", "ein Fuchs\u2028im Feld")], image="c.jpg", parallel=True),
]
COLUMNS: dict[str, Any] = {"texts": "{language}", "image": "image", "split": "split", "parallel": True}


@pytest.mark.parametrize("name", ["t.tsv", "t.csv", "t.jsonl", "t.json", "t.parquet"])
def test_every_form_gives_the_same_rows(tmp_path, name):
    if name.endswith(".parquet"):
        as_parquet(tmp_path / name, ROWS)
    else:
        put(tmp_path, name, {"tsv": as_tsv, "csv": as_csv}.get(name[2:], as_jsonl)())
    assert rows(tmp_path, corpus(tables=[{"file": name}], **COLUMNS)) == WANTED


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2", ".zip"])
def test_compressed_tables(tmp_path, ending):
    content = as_csv().encode()
    if ending == ".zip":
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            archive.writestr("deep/t.csv", content)
    else:
        pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[ending]
        (tmp_path / f"t.csv{ending}").write_bytes(pack(content))
    assert rows(tmp_path, corpus(tables=[{"file": "t.csv"}], **COLUMNS)) == WANTED


def test_line_ends_marks_and_empty_lines_do_not_matter(tmp_path):
    put(tmp_path, "t.tsv", "\ufeff" + as_tsv().replace("\n", "\r\n") + "\r\n")
    assert rows(tmp_path, corpus(tables=[{"file": "t.tsv"}], **COLUMNS)) == WANTED
    put(tmp_path, "t.jsonl", "\ufeff" + as_jsonl().replace("\n", "\r\n\r\n") + "\n \n")
    assert rows(tmp_path, corpus(tables=[{"file": "t.jsonl"}], **COLUMNS)) == WANTED
    put(tmp_path, "empty.tsv", "")
    with pytest.raises(DataError, match=r"empty.tsv: there is no column 'en'$"):
        rows(tmp_path, corpus(tables=[{"file": "empty.tsv"}], **COLUMNS))


def test_a_header_may_be_declared_and_a_format_too(tmp_path):
    put(tmp_path, "t.txt", as_tsv(header=False))
    table = {"file": "t.txt", "format": "tsv", "header": list(ROWS[0])}
    assert rows(tmp_path, corpus(tables=[table], **COLUMNS)) == WANTED


def test_quotes_may_be_declared(tmp_path):
    put(tmp_path, "t.tsv", 'en\tde\n"a\nb ""c"""\td\n')
    quoted = corpus(tables=[{"file": "t.tsv", "quotes": True}], texts="{language}")
    assert texts(tmp_path, quoted) == [[("en", 'a\nb "c"'), ("de", "d")]]
    put(tmp_path, "t.csv", 'en,de\n"a",b\n')
    plain = corpus(tables=[{"file": "t.csv", "quotes": False}], texts="{language}")
    assert texts(tmp_path, plain) == [[("en", '"a"'), ("de", "b")]]


def test_several_files_and_tables_come_in_order(tmp_path):
    for number in (2, 0, 1):
        put(tmp_path, f"part{number}.jsonl", json.dumps({"t": str(number)}))
    put(tmp_path, "held.jsonl", json.dumps({"t": "held"}))
    tables = [
        {"file": "held.jsonl", "split": "test"},
        {"file": "none.jsonl", "optional": True},
        {"file": "part*.jsonl"},
    ]
    found = rows(tmp_path, corpus(tables=tables, text="t"))
    assert [(row.split, row.texts) for row in found] == [
        ("test", [("en", "held")]),
        *(("", [("en", str(number))]) for number in range(3)),
    ]


def test_objects_inside_objects_and_lists_of_captions(tmp_path):
    made = [
        {"key": 7, "en": {"caption": ["one", "two"]}, "de": {"caption": ["eins"]}},
        {"key": 8, "en": None, "de": {"caption": ["zwei"]}},
        {"key": 9, "en": {"caption": None}, "de": None},
    ]
    put(tmp_path, "t.jsonl", "\n".join(map(json.dumps, made)))
    as_parquet(tmp_path / "t.parquet", made)
    for name in ("t.jsonl", "t.parquet"):
        found = rows(tmp_path, corpus(tables=[{"file": name}], texts="{language}.caption", image="key"))
        assert [(row.image, row.texts) for row in found] == [
            ("7", [("en", "one"), ("en", "two"), ("de", "eins")]),
            ("8", [("de", "zwei")]),
        ]


def test_other_spellings_of_a_language_are_found(tmp_path):
    put(tmp_path, "t.tsv", "en\tjp\nhello\tこんにちは\n")
    put(tmp_path, "t.jsonl", json.dumps({"en": "hello", "jp": "こんにちは"}))
    put(tmp_path, "both.jsonl", json.dumps({"en": "hello", "ja": "こんにちは", "jp": "x"}))
    for name in ("t.tsv", "t.jsonl", "both.jsonl"):
        declared = corpus(("en", "ja"), tables=[{"file": name}], texts="{language}")
        assert texts(tmp_path, declared) == [[("en", "hello"), ("ja", "こんにちは")]]


def test_only_chosen_languages_are_read(tmp_path):
    put(tmp_path, "t.jsonl", json.dumps({"en": "a", "de": "b", "fr": "c"}))
    assert texts(tmp_path, corpus(("en",), ("fr",), tables=[{"file": "t.jsonl"}], texts="{language}")) == [
        [("en", "a"), ("fr", "c")]
    ]
    named = {"en": "en", "de": "de", "fr": "fr"}
    assert texts(tmp_path, corpus(("de",), tables=[{"file": "t.jsonl"}], texts=named)) == [[("de", "b")]]


def test_rows_may_name_their_language(tmp_path):
    put(tmp_path, "t.tsv", "code\tt\nen\ta\nfr\tb\niw\tc\nzh-TW\td\nde\t\n")
    declared = corpus(("en", "he"), ("de",), tables=[{"file": "t.tsv"}], text="t", language="code")
    assert texts(tmp_path, declared) == [[("en", "a")], [("he", "c")]]


def test_a_translation_beside_its_source(tmp_path):
    put(tmp_path, "t.tsv", "en\tcode\tt\na dog\tde\tein Hund\na cat\tfr\tun chat\na fox\ttl\tsoro\n")
    options = {"tables": [{"file": "t.tsv"}], "texts": {"en": "en"}, "text": "t", "language": "code", "parallel": True}
    assert texts(tmp_path, corpus(("en", "de", "fil"), **options)) == [
        [("en", "a dog"), ("de", "ein Hund")],
        [("en", "a fox"), ("fil", "soro")],
    ]


def test_splits_are_called_ours(tmp_path):
    names = ["train", "val", "dev", "validation", "test", "eval", "test_2016"]
    put(tmp_path, "t.tsv", "s\tt\n" + "".join(f" {name} \tx\n" for name in names))
    declared = corpus(tables=[{"file": "t.tsv"}], text="t", split="s", splits={"eval": "test_eval", "dev": "train"})
    found = [row.split for row in rows(tmp_path, declared)]
    assert found == ["train", "valid", "train", "valid", "test", "test_eval", "test_2016"]


def test_only_columns_that_are_asked_for_are_read_of_a_parquet(tmp_path, monkeypatch):
    as_parquet(tmp_path / "t.parquet", [{"en": "a", "pixels": b"\0" * 9}])
    from pyarrow import parquet

    asked = []
    real = parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        parquet.ParquetFile,
        "iter_batches",
        lambda *given, columns, **named: asked.append(columns) or real(*given, columns=columns, **named),
    )
    assert texts(tmp_path, corpus(("en",), tables=[{"file": "t.parquet"}], text="en")) == [[("en", "a")]]
    assert asked == [["en"]]


def test_files_are_found_before_rows_are_asked_for(tmp_path):
    with pytest.raises(DataError, match=r"t.tsv is missing, plain or compressed"):
        read(corpus(tables=[{"file": "t.tsv"}], text="en"), Source(tmp_path))
    with pytest.raises(DataError, match=r"no table of this corpus in it; made here"):
        read(corpus(tables=[{"file": "t.tsv", "optional": True}], text="en"), Source(tmp_path))


T = {"text": "t"}
WRONG = {
    "a column that is not there": (
        "t.tsv",
        "en\tdee\n",
        COLUMNS,
        r"t.tsv: there is no column 'de'; did you mean dee\?",
    ),
    "another": ("t.tsv", "a\tb\n", {"text": "caption"}, r"there is no column 'caption'; known: a, b$"),
    "too few cells": ("t.tsv", "t\tu\na\tb\nc\n", T, r"t.tsv line 3: 1 cell, but there are 2 columns \(t, u\); fix"),
    "too many cells": ("t.csv", 't,u\n"a\nb",c\nd,e,f\n', T, r"t.csv line 4: 3 cells, but there are 2 columns"),
    "an open quote": ("t.csv", 't\na\n"b\nc\n', T, r"t.csv line 4: unexpected end of data; a quote in or above"),
    "text after a quote": ("t.csv", 't\n"a"b\n', T, r"t.csv line 2: ',' expected after '\"'; a quote in or above"),
    "not JSON": ("t.jsonl", '{"t": "a"}\n{"t": \n', T, r"t.jsonl line 2: not JSON \(Expecting value.*\); every line"),
    "deep JSON": ("t.jsonl", "[" * 200_000, T, r"t.jsonl line 1: not JSON \(maximum recursion"),
    "a list of texts": ("t.json", '[{"t": "a"}, "b"]', T, r"t.json item 2: not a JSON object; every item of the list"),
    "an object of two lists": (
        "t.json",
        '{"a": [{"t": 1}], "b": [{"t": 2}]}',
        T,
        r"t.json: holds no list of objects; write a list of them, or one object a line",
    ),
    "two columns of one name": ("t.tsv", "t\tt\na\tb\n", T, r"t.tsv: 2 columns are called 't'; give each a name of"),
    "an Excel file that is none": ("t.xlsx", "t", T, r"t.xlsx: not a readable .xlsx \(.*\); save it again"),
    "text without cells": ("t.txt", "t\na\n", T, r"t.txt: its first line has no tab, comma, semicolon or \|"),
    "no text": ("t.dat", "a\0\n", T, r"t.dat line 1: has NUL bytes: not a text file, or UTF-16 without a mark"),
    "not a string": ("t.jsonl", '{"t": 5}', T, r"t.jsonl line 1: the text in en is '5', not a string; fix it"),
    "not strings": ("t.jsonl", '{"t": ["a", 5]}', T, r"line 1: the text in en is '5', not a string"),
    "not an object": ("t.jsonl", '{"t": "a"}', {"text": "t.u"}, r"line 1: t.u: 'a' is not an object with 'u' in it"),
    "no such member": ("t.jsonl", '{"a": 1, "b": 2}', T, r"t.jsonl: no line has a text in t; known: a, b$"),
    "a number": (
        "t.jsonl",
        '{"t": "a", "i": 1.5}',
        T | {"image": "i"},
        r"line 1: the picture is '1.5', not a name; fix",
    ),
    "true": ("t.jsonl", '{"t": "a", "i": true}', T | {"image": "i"}, r"line 1: the picture is 'True', not a name"),
    "a strange split": (
        "t.tsv",
        "t\ts\na\tfoo\n",
        T | {"split": "s"},
        r"line 2: split 'foo' is none of train, valid and test; map it to .* as in --set options.splits.foo=train$",
    ),
    "no known ending": (
        "t.xls",
        "t",
        T,
        r"t.xls: a .xls is not read as a table; save the sheet as CSV UTF-8 or as .xlsx",
    ),
    "not Parquet": ("t.parquet", "PAR1", T, r"t.parquet: not a readable .parquet \(.*\); fetch it again"),
    "a packed Parquet": (
        "t.parquet.gz",
        "",
        T,
        r"t.parquet.gz: a .parquet cannot be read inside an archive; unpack it first",
    ),
}


def test_what_is_no_text_in_its_encoding_is_named(tmp_path):
    put(tmp_path, "t.dat", "a\0\n")
    with pytest.raises(DataError, match=r"t.dat: not a text file; tables are .tsv"):
        rows(tmp_path, corpus(tables=[{"file": "t.dat", "encoding": "latin-1"}], **T))


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(tmp_path, what):
    name, content, options, message = WRONG[what]
    if "Parquet" in what:
        pytest.importorskip("pyarrow")
    put(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as error:
        rows(tmp_path, corpus(tables=[{"file": name.removesuffix(".gz")}], **options))
    assert "\n" not in str(error.value)


def test_a_cell_longer_than_any_text_is_an_open_quote(tmp_path, monkeypatch):
    monkeypatch.setattr("mclip_kit.data.corpora.records.LONGEST_CELL", 1000)
    put(tmp_path, "t.csv", 't\na\n"b' + "\nc" * 1000)
    with pytest.raises(
        DataError, match=r"t.csv line 50\d: field larger than field limit \(1000\); a quote in or above"
    ):
        rows(tmp_path, corpus(tables=[{"file": "t.csv"}], text="t"))


def test_a_cell_of_the_readers_own_making_is_read(tmp_path):
    put(tmp_path, "t.csv", 't\n"' + "c" * 200_000 + '"\n')
    assert len(texts(tmp_path, corpus(tables=[{"file": "t.csv"}], text="t"))[0][0][1]) == 200_000


def test_a_parquet_that_breaks_off(tmp_path):
    path = as_parquet(tmp_path / "t.parquet", [{"t": f"{n} words that differ"} for n in range(5000)])
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"t.parquet: cannot be read after row \d+ \(.*\); fetch it again"):
        rows(tmp_path, corpus(tables=[{"file": "t.parquet"}], text="t"))


def test_without_pyarrow_a_parquet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    put(tmp_path, "t.parquet", "")
    with pytest.raises(DataError, match=r"which is not installed: pip install pyarrow"):
        rows(tmp_path, corpus(tables=[{"file": "t.parquet"}], text="t"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give texts .*, or both"),
        ({"texts": "{language}", "language": "code"}, "language is the language of `text`"),
        ({"text": "t", "language": "code", "parallel": True}, "parallel needs texts"),
        ({"texts": "caption"}, r"texts has no \{language\}"),
        ({"texts": {"en": "en"}}, r"options.texts names no column for de; known: en"),
    ],
)
def test_options_that_contradict_each_other(tmp_path, options, message):
    put(tmp_path, "t.tsv", "en\n")
    with pytest.raises(RecipeError, match=message):
        rows(tmp_path, corpus(tables=[{"file": "t.tsv"}], **options))
