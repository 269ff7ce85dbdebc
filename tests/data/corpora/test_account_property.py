"""Whatever a table holds, its rows are kept or counted as left out; its pictures are found or counted as missing."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import Corpus, find_reader
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import adhoc
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.data.prepare.reading import read_blocks
from mclip_kit.data.prepare.writer import ALONE, TableWriter
from mclip_kit.errors import MclipError

thorough = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
TEXTS = st.sampled_from([None, "", "  ", "a dog", 'a "big" dog', "one; two, three", "ein Hund", "犬"])
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "image": st.sampled_from([None, "", "a.jpg", "b.jpg", "x/a.jpg", "x/gone.jpg", "y/a.jpg", "https://x.org/a.jpg"]),
    "caption": TEXTS,
    "title": TEXTS,
    "en": TEXTS,
    "de": TEXTS,
    "caption_fr": TEXTS,
    "language": st.sampled_from([None, "", "en", "de", "zh-TW", "azb", "sr-Latn"]),
    "split": st.sampled_from([None, "train", "val", "test"]),
    "id": st.integers(0, 9).map(str),
}
COLUMNS = st.lists(st.sampled_from(list(CELLS)), min_size=2, max_size=len(CELLS), unique=True)
Cells = dict[str, Any]


@st.composite
def tables(draw: st.DrawFn) -> list[Cells]:
    """The rows of a table with some columns."""
    columns = draw(COLUMNS)
    return draw(st.lists(st.fixed_dictionaries({name: CELLS[name] for name in columns}), min_size=1, max_size=8))


def write(rows: list[Cells], path: Path) -> None:
    """Rows in the form that the path's ending says."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema([(name, pyarrow.string()) for name in rows[0]])
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
    elif path.suffix == ".xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        for cells in [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]:
            book.active.append(cells)
        book.save(path)
    elif path.suffix in (".json", ".jsonl"):
        lines = [json.dumps(row) for row in rows]
        path.write_text("[" + ",".join(lines) + "]" if path.suffix == ".json" else "\n".join(lines))
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=",;"[len(rows) % 2], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, two of them of one name."""
    folder = tmp_path_factory.mktemp("account")
    for number, name in enumerate(("x/a.jpg", "b.jpg", "z/a.jpg")):
        path = folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (90 * number, 0, 0)).save(path)
    return folder


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet", "xlsx"])
def test_rows_of_a_table_are_kept_or_counted(pictures: Path, ending: str) -> None:
    read = []

    @thorough
    @example([{"image": "x/a.jpg", "caption": "a dog"}, {"image": "b.jpg", "caption": ""}], ["en"])
    @given(tables(), st.sampled_from([[], ["en"], ["de", "en"]]))
    def holds(rows: list[Cells], languages: list[str]) -> None:
        path, out = pictures / f"t.{ending}", pictures / "out"
        write(rows, path)
        shutil.rmtree(out, ignore_errors=True)
        try:
            name, tree = adhoc.declare([], path, None, None, languages)
            corpus = parse(tree, Corpus, name)
        except MclipError:
            return  # such as a table without captions
        source = Source(path.parent, pictures / "pictures")
        with TableWriter(out, corpus, source, False) as written:
            for block in read_blocks(find_reader(corpus)(corpus, source), corpus, source.account, ALONE):
                written.add(block)
        account, counts = source.account, written.counted()
        assert account.read == len(rows)
        assert account.kept + sum(account.left_out.values()) == len(rows)
        assert counts["rows"]["read"] == len(rows)
        table = (out / "images.tsv").read_text().splitlines()[1:]
        assert len(table) == counts["images"] == len(written.pictures)
        assert counts["missing_pictures"] == sum(line.endswith("\t") for line in table)
        assert_own_pictures(table, pictures / "pictures")
        read.append(account.kept)

    holds()
    assert sum(read) > 1  # the draws may hold no row that is kept


def assert_own_pictures(table: list[str], folder: Path) -> None:
    """A file that is found ends as its name does, and no two names have one file."""
    found = [(name, file) for name, _, _, file in (line.split("\t") for line in table) if file]
    assert len({file for _, file in found}) == len(found)
    for name, file in found:
        assert Path(file).is_relative_to(folder)
        assert file.endswith(name.rpartition("/")[2])
        assert "/" not in name or file == str(folder / name)


def test_a_prepared_folder_keeps_the_account(pictures: Path) -> None:
    rows = [
        {"image": "x/a.jpg", "caption": "a dog", "language": "en"},
        {"image": "b.jpg", "caption": "ein Hund", "language": "azb"},
        {"image": None, "caption": "a cat", "language": "en"},
        {"image": "b.jpg", "caption": " ", "language": "en"},
        {"image": "x/gone.jpg", "caption": "a fox", "language": "en"},
    ]
    write(rows, pictures / "t.jsonl")
    name, tree = adhoc.declare([], pictures / "t.jsonl", None, None, ["en"])
    source = Source(pictures, pictures / "pictures")
    counts = prepare(parse(tree, Corpus, name), pictures / "prepared", source=source)["counts"]
    assert counts["rows"] == {
        "read": 5,
        "kept": 2,
        "left_out": {
            "rows in azb, which is not one of the languages": 1,
            "rows without a picture": 1,
            "rows without a text": 1,
        },
        "ignored": {},
        "examples": {
            "rows in azb, which is not one of the languages": f"{pictures}/t.jsonl line 2",
            "rows without a picture": f"{pictures}/t.jsonl line 3",
            "rows without a text": f"{pictures}/t.jsonl line 4",
            "missing_pictures": "x/gone.jpg",
        },
    }
    assert counts["missing_pictures"] == 1
    assert read_captions(pictures / "prepared").picture(0).getpixel((0, 0)) == (0, 0, 0)
