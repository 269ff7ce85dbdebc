"""Tables as people have them: each column is taken or named, each form is read or refused with a way that works."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from mclip_kit.config.yaml import overridden, parse
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Corpus, find_reader
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import adhoc
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.errors import MclipError

Texts = list[tuple[str | None, str, str]]
"""(picture, language, text)."""


def declared(path: Path, languages: Sequence[str] = (), overrides: Sequence[str] = ()) -> Corpus:
    """The declaration of a table, as the command line makes it."""
    name, tree = adhoc.declare([], path, None, None, list(languages), None, overrides)
    return parse(overridden(tree, overrides), Corpus, name)


def texts(path: Path, languages: Sequence[str] = (), overrides: Sequence[str] = ()) -> tuple[Texts, dict[str, int]]:
    """What is read of a table, and what is not taken."""
    corpus, source = declared(path, languages, overrides), Source(path.parent)
    rows = list(find_reader(corpus)(corpus, source).rows)
    found = [(row.image, language, text) for row in rows for language, text in row.texts]
    return found, {why: count for why, count in (source.account.ignored + source.account.left_out).items()}


def put(folder: Path, name: str, content: Any, encoding: str = "utf-8") -> Path:
    """A file of text, of JSON, or of rows as .parquet."""
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(content), path)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode(encoding))
    return path


A = [("a.jpg", "en", "one")]
FORMS: dict[str, tuple[str, Any, Texts, dict[str, int]]] = {
    "a column a language": (
        "t.csv",
        "image,en,de,pt,hi\na.jpg,1,2,3,4\n",
        [("a.jpg", "en", "1"), ("a.jpg", "de", "2"), ("a.jpg", "pt", "3"), ("a.jpg", "hi", "4")],
        {},
    ),
    "captions and languages": (
        "t.tsv",
        "image\tcaption\ten\tde\na.jpg\t1\t2\t3\n",
        [("a.jpg", "en", "1"), ("a.jpg", "en", "2"), ("a.jpg", "de", "3")],
        {},
    ),
    "columns called after languages": (
        "t.csv",
        "img_path,caption_en,pt-BR text,notes\na.jpg,1,2,3\n",
        [("a.jpg", "en", "1"), ("a.jpg", "pt_br", "2")],
        {"columns": 1},
    ),
    "languages inside": (
        "t.jsonl",
        {"file_name": "a.jpg", "captions": {"en": ["1", "2"], "de": ["3"]}},
        [("a.jpg", "en", "1"), ("a.jpg", "en", "2"), ("a.jpg", "de", "3")],
        {},
    ),
    "the file before its number": ("t.csv", "image_id,file_name,caption\n7,a.jpg,one\n", A, {"columns": 1}),
    "the caption before the title": ("t.csv", "title,image,caption,id\nT,a.jpg,one,7\n", A, {"columns": 2}),
    "the number of a caption": ("t.csv", "image,caption,caption_id\na.jpg,one,7\n", A, {"columns": 1}),
    "Indonesian among languages": (
        "t.csv",
        "image,caption_en,caption_id\na.jpg,one,satu\n",
        [*A, ("a.jpg", "id", "satu")],
        {},
    ),
    "only a title": ("t.csv", "title,image\none,a.jpg\n", A, {}),
    "numbered captions": (
        "t.csv",
        "image,caption_1,caption_2\na.jpg,1,2\nb.jpg,3,\n",
        [("a.jpg", "en", "1"), ("a.jpg", "en", "2"), ("b.jpg", "en", "3")],
        {"empty texts in en of rows that are kept": 1},
    ),
    "LAION": ("t.parquet", [{"URL": "a.jpg", "TEXT": "one", "similarity": 0.3}], A, {"columns": 1}),
    "img2dataset's metadata": (
        "t.parquet",
        [
            {"url": "https://x.org/1", "key": "000", "status": "success", "caption": "one"},
            {"url": "https://x.org/2", "key": "001", "status": "failed_to_download", "caption": "two"},
        ],
        [("000", "en", "one")],
        {"columns": 1, "rows whose status is not success": 1},
    ),
    "Flickr8k's captions.txt": ("captions.txt", 'image,caption\na.jpg,"one"\n', A, {}),
    "Flickr30k's results.csv": (
        "results.csv",
        'image_name| comment_number| comment\na.jpg| 0| a "big" dog\n',
        [("a.jpg", "en", ' a "big" dog')],
        {"columns": 1},
    ),
    "Flickr8k.token.txt": ("x.token.txt", "a.jpg#0\tone\n", A, {}),
    "a header with spaces": ("t.csv", 'image, caption\na.jpg, "one"\n', A, {}),
    "semicolons": ("t.csv", "image;caption\na.jpg;one, two\n", [("a.jpg", "en", "one, two")], {}),
    "tabs in a .csv": ("t.csv", "image\tcaption\na.jpg\tone\n", A, {}),
    "R's quotes": ("t.tsv", '"image"\t"caption"\n"a.jpg"\t"one"\n', A, {}),
    "R's row names": ("t.tsv", '"image"\t"caption"\n"1"\t"a.jpg"\t"one"\n', A, {"columns": 1}),
    "pandas' quotes": ("t.tsv", 'image\tcaption\na.jpg\t"a ""big"" dog"\n', [("a.jpg", "en", 'a "big" dog')], {}),
    "quotes that are text": ("t.tsv", 'image\tcaption\na.jpg\t"big" dog\n', [("a.jpg", "en", '"big" dog')], {}),
    "pandas' index": ("t.csv", ",image,caption\n0,a.jpg,one\n", A, {"columns": 1}),
    "a byte-order mark": ("t.csv", "\ufeffimage,caption\na.jpg,one\n", A, {}),
    "JSON objects": ("t.json", [{"image": "a.jpg", "caption": ["one"]}], A, {}),
    "JSON inside an object": ("t.json", {"info": 1, "data": [{"image": "a.jpg", "caption": "one"}]}, A, {}),
    "JSON from name to captions": ("t.json", {"a.jpg": ["one"], "b.jpg": "2"}, [*A, ("b.jpg", "en", "2")], {}),
    "COCO's JSON": (
        "t.json",
        {
            "images": [{"id": 1, "file_name": "train/0.jpg"}, {"id": 2, "file_name": "val/0.jpg"}],
            "annotations": [{"image_id": 1, "caption": "1"}, {"image_id": 2, "caption": "2"}],
        },
        [("train/0.jpg", "en", "1"), ("val/0.jpg", "en", "2")],
        {},
    ),
    "Karpathy's JSON": (
        "t.json",
        {"images": [{"filename": "a.jpg", "split": "restval", "sentences": [{"raw": "one"}]}]},
        A,
        {},
    ),
    "null and empty": (
        "t.jsonl",
        "".join(
            json.dumps({"image": image, "caption": caption}) + "\n"
            for image, caption in (("a.jpg", ["one", None, " "]), ("b.jpg", None), (None, "x"), ("c.jpg", ""))
        ),
        A,
        {
            "empty texts in en of rows that are kept": 2,
            "rows without a text": 2,
            "rows without a picture": 1,
        },
    ),
    "parallel texts of pages": (
        "t.csv",
        "url,en,de\nhttps://x.org/,1,2\n",
        [(None, "en", "1"), (None, "de", "2")],
        {"columns": 1},
    ),
    "addresses of pictures": (
        "t.csv",
        "url,en\nhttps://x.org/a.jpg?w=9,1\n",
        [("https://x.org/a.jpg?w=9", "en", "1")],
        {},
    ),
    "parallel texts of a hub": (
        "t.jsonl",
        {"translation": {"en": "1", "de": "2"}},
        [(None, "en", "1"), (None, "de", "2")],
        {},
    ),
    "parallel": ("t.csv", "en,de\n1,2\n", [(None, "en", "1"), (None, "de", "2")], {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_column_is_taken_or_named(tmp_path, form):
    name, content, expected, ignored = FORMS[form]
    assert texts(put(tmp_path, name, content)) == (expected, ignored)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_encodings_with_a_mark(tmp_path, encoding):
    path = put(tmp_path, "t.txt", "image\tcaption\r\na.jpg\tcafé ਊ\r\n", encoding)
    assert texts(path)[0] == [("a.jpg", "en", "café ਊ")]


def test_rows_of_other_languages_are_counted_by_language(tmp_path):
    rows = "".join(f"a.jpg\t{code}\tx\n" for code in ("en", "zh-TW", "azb", "zh-TW", "", "de"))
    path = put(tmp_path, "t.tsv", "image\tlanguage\tcaption\n" + rows)
    assert texts(path, ["en", "de"])[1] == {
        "rows in zh_tw, which is not one of the languages": 2,
        "rows in azb, which is not one of the languages": 1,
        "rows without a language": 1,
    }
    assert declared(path).languages == ["en", "azb", "de", "zh_tw"]


def test_a_caption_is_english_where_other_languages_have_their_columns(tmp_path):
    path = put(tmp_path, "t.tsv", "image\tcaption\tde\na.jpg\tone\teins\n")
    assert texts(path, ["de"]) == ([("a.jpg", "de", "eins")], {"columns": 1})
    path = put(tmp_path, "t.tsv", "image\tcaption\na.jpg\teins\n")
    assert texts(path, ["de"]) == ([("a.jpg", "de", "eins")], {})


def test_an_excel_sheet(tmp_path, monkeypatch):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["image", "caption"], ["a.jpg", "one"], [None, None], ["b.jpg", 2024]):
        book.active.append(row)
    book.create_sheet("other")
    book.save(tmp_path / "t.xlsx")
    assert texts(tmp_path / "t.xlsx") == ([*A, ("b.jpg", "en", "2024")], {"sheets": 1, "rows without a text": 1})
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(MclipError, match="pip install openpyxl; or save the sheet as CSV UTF-8"):
        texts(tmp_path / "t.xlsx")


REMEDIES: dict[str, tuple[str, str, str, list[str]]] = {
    "a code page": (
        "image,caption\na.jpg,café\n",
        "t.csv line 2: not UTF-8 (byte 0xe9)",
        "--set options.tables.0.encoding=cp1252",
        ["options.tables.0.encoding=cp1252"],
    ),
    "no header": (
        "a.jpg,caf\u00e9\n",
        "its first line is a.jpg, caf\u00e9, which are no names of columns",
        "--set 'options.tables.0.header=[image, caption]'",
        ["options.tables.0.header=[image, caption]"],
    ),
    "other names": (
        "foto,bild\na.jpg,caf\u00e9\n",
        "columns are foto, bild",
        "--set options.image=COLUMN --set options.text=COLUMN",
        ["options.image=foto", "options.text=bild"],
    ),
    "another split": (
        "image,caption,split\na.jpg,caf\u00e9,held\n",
        "split 'held' is none of train, valid and test",
        "--set options.splits.held=train",
        ["options.splits.held=test"],
    ),
    "quotes that are not closed": (
        'image,caption\na.jpg,"caf\u00e9\n',
        "a quote in or above this line is not closed",
        "",
        ["options.tables.0.quotes=false", "options.tables.0.format=csv"],
    ),
    "two separators": (
        "image;caption,x,y\na.jpg;caf\u00e9,x,y\n",
        "columns are image;caption, x, y",
        "",
        ["options.tables.0.separator=;"],
    ),
}


def test_splits_have_the_names_that_folders_have(tmp_path):
    names = ["training", "TEST", "testing", "Val", "dev", "test_2017"]
    path = put(tmp_path, "t.csv", "image,caption,split\n" + "".join(f"{name}.jpg,x,{name}\n" for name in names))
    corpus = declared(path)
    found = [row.split for row in find_reader(corpus)(corpus, Source(tmp_path)).rows]
    assert found == ["train", "test", "test", "valid", "valid", "test_2017"]


@pytest.mark.parametrize("what", REMEDIES)
def test_the_advice_works_on_this_command_line(tmp_path, what):
    content, message, advice, overrides = REMEDIES[what]
    path = put(tmp_path, "t.csv", content, "cp1252" if what == "a code page" else "utf-8")
    with pytest.raises(MclipError) as error:
        texts(path)
    assert message in str(error.value)
    assert advice in str(error.value)
    found, _ = texts(
        path, overrides=overrides if what != "two separators" else [*overrides, "options.text=caption,x,y"]
    )
    assert [(image, language) for image, language, _ in found] == [("a.jpg", "en")]
    assert "café" in found[0][2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file; correct the path after --pairs"),
        ("t.csv", "", "is empty; give a table with a first line"),
        ("t.xls", "x", "save the sheet as CSV UTF-8 or as .xlsx"),
        ("t.arrow", "x", "datasets.load_from_disk"),
        ("t.csv", "image,label\na.jpg,1\n", "columns are image, label; .*--set options.text=COLUMN$"),
        ("t.csv", "image,caption\na.jpg,x\n", "options.tables.0: quotse: unknown key; did you mean quotes"),
        ("t.csv", "id,en,de\n1,2,3\n", "is column id a language"),
        ("t.csv", "image,en\na.jpg,x\n", "no column has captions in fr"),
    ],
)
def test_what_cannot_be_read_says_how_to_go_on(tmp_path, name, content, message):
    if content is not None:
        put(tmp_path, name, content)
    overrides = ["options.tables.0.quotse=true"] if "quotse" in message else []
    with pytest.raises(MclipError, match=message):
        texts(tmp_path / name, ["fr"] if "fr" in message else [], overrides)


def jpeg(shade: int) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


HUB = [{"image": {"bytes": jpeg(shade), "path": "image.png"}, "caption": str(shade)} for shade in (0, 90, 90)]
PLAIN = [{"image": jpeg(shade), "text": str(shade)} for shade in (0, 90)]
DOWNLOADED = [
    {"key": str(n), "status": status, "url": f"https://x.org/{n}.png", "caption": caption, "jpg": content}
    for n, (status, caption, content) in enumerate(
        [
            ("success", "0", jpeg(0)),
            ("failed_to_download", "x", None),
            ("success", None, jpeg(3)),
            ("success", "x", None),
            ("success", "x", b"no picture"),
            ("success", "90", jpeg(90)),
        ]
    )
]


@pytest.mark.parametrize(
    ("rows", "names", "left_out"),
    [
        (HUB, ["image.png", "image.png (*)"], {}),
        (PLAIN, ["t.parquet 1", "t.parquet 2"], {}),
        (
            DOWNLOADED,
            ["https://x.org/0.png", "https://x.org/5.png"],
            {
                "rows whose status is not success": 1,
                "rows without a text": 1,
                "rows without a picture": 1,
                "rows whose picture is none": 1,
            },
        ),
    ],
)
def test_pictures_inside_a_parquet_are_copied_and_read(tmp_path, rows, names, left_out):
    path = put(tmp_path, "t.parquet", rows)
    counts = prepare(declared(path), tmp_path / "out", source=Source(tmp_path))["counts"]
    (tmp_path / "out").rename(tmp_path / "moved")
    captions = read_captions(tmp_path / "moved")
    assert [name.partition(" (")[0] for name in captions.names] == [name.partition(" (")[0] for name in names]
    assert len(set(captions.names)) == len(names)
    assert (counts["missing_pictures"], counts["rows"]["left_out"]) == (0, left_out)
    assert counts["rows"]["read"] == len(rows)
    shades = [captions.picture(int(image)).getpixel((0, 0))[0] for image in captions.images]
    assert shades == [int(text) for text in captions.texts]
    assert (tmp_path / "moved" / "fingerprints").is_dir()
