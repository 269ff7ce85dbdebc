"""Rows become tables and parallel text, and every one of them is counted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mclip_kit.data.bitext import raw_text
from mclip_kit.data.corpora import Content, Corpus, Row
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.hashes import hash_texts
from mclip_kit.data.prepare.parallel_text import side_prefixes
from mclip_kit.data.prepare.reading import read_blocks
from mclip_kit.data.prepare.writer import ALONE, TableWriter
from mclip_kit.errors import DataError
from tests import tiny

Found = list[list[str]]


def written(
    folder: Path, *rows: Row, source: Source | None = None, drawn: bool = False, **declared: Any
) -> TableWriter:
    """The tables of some rows."""
    corpus = tiny.declaration().model_copy(update=declared)
    with TableWriter(folder / "data", corpus, source or Source(None), drawn) as tables:
        add(tables, rows)
    return tables


def add(tables: TableWriter, rows: Iterable[Row]) -> None:
    for block in read_blocks(Content(rows), tables.corpus, tables.source.account, ALONE):
        tables.add(block)


def images(folder: Path) -> Found:
    """Rows of the table of pictures, without its header."""
    return [line.split("\t") for line in (folder / "data" / "images.tsv").read_text("utf-8").split("\n")[1:-1]]


def captions(tables: TableWriter) -> Found:
    """Rows of the captions, with the names of their pictures."""
    names = [*tables.pictures.numbers]
    blocks = ([column.to_pylist() for column in block.values()] for block in tables.captions.columns())
    rows = [row for columns in blocks for row in zip(*columns, strict=True)]
    assert tables.captions.hashes_N.tolist() == hash_texts(row[3] for row in rows).tolist()
    return [[names[image], language, split, caption] for image, language, split, caption in rows]


def bitext(folder: Path) -> dict[str, list[str]]:
    """File -> its lines."""
    files = sorted((folder / "data" / "bitext").glob("*.txt"))
    return {path.name: path.read_text("utf-8").split("\n")[:-1] for path in files}


def test_captions_and_pictures_come_in_the_order_of_rows(tmp_path):
    tables = written(
        tmp_path,
        Row("train", [("en", "a dog"), ("en", " two\tdogs "), ("de", "ein Hund")], image="b.jpg", stratum="animals"),
        Row("test", [("de", "eine Katze")], image="a.jpg", group=7),
    )
    assert images(tmp_path) == [["b.jpg", "0", "animals", ""], ["a.jpg", "7", "all", ""]]
    assert captions(tables) == [
        ["b.jpg", "en", "train", "a dog"],
        ["b.jpg", "en", "train", "two dogs"],
        ["b.jpg", "de", "train", "ein Hund"],
        ["a.jpg", "de", "test", "eine Katze"],
    ]
    assert bitext(tmp_path) == {}


def test_pictures_without_a_caption_in_their_split_are_listed(tmp_path):
    tables = written(
        tmp_path,
        Row("test", [], image="none.jpg"),
        Row("test", [("en", " ")], image="later.jpg"),
        Row("test", [("en", "a dog")], image="later.jpg"),
        Row("train", [("de", "")], image="later.jpg"),
    )
    names = [*tables.pictures.numbers]
    assert [(names[number], split) for number, split in tables.uncaptioned] == [
        ("none.jpg", "test"),
        ("later.jpg", "train"),
    ]


def test_where_all_pictures_have_captions_there_is_no_such_list(tmp_path):
    assert not written(tmp_path, Row("test", [("en", "a dog")], image="a.jpg")).uncaptioned


def test_each_text_in_the_first_language_meets_those_of_the_others_at_its_place(tmp_path):
    texts = [("de", "d1"), ("en", "e1"), ("fr", "f1"), ("en", "e2"), ("de", "d2"), ("en", "e3")]
    tables = written(
        tmp_path, Row("train", texts, parallel=True), Row("train", [("fr", "f"), ("de", "d")], parallel=True)
    )
    assert bitext(tmp_path) == {
        "train.en-de.en.txt": ["e1", "e2"],
        "train.en-de.de.txt": ["d1", "d2"],
        "train.en-fr.en.txt": ["e1"],
        "train.en-fr.fr.txt": ["f1"],
    }
    assert tables.pairs == {("train", "en", "de"): 2, ("train", "en", "fr"): 1}


def test_languages_for_captions_only_are_no_bitext(tmp_path):
    texts = [("en", "e"), ("de", "d"), ("ja", "j")]
    row = Row("train", texts, image="a.jpg", parallel=True)
    tables = written(tmp_path, row, languages=["en", "de"], caption_languages=["ja"])
    assert list(tables.pairs) == [("train", "en", "de")]
    assert [cells[1] for cells in captions(tables)] == ["en", "de", "ja"]


def test_a_pair_loses_both_sides_and_lines_stay_together(tmp_path):
    rows = [
        Row("train", [("en", f"e{n}"), ("de", text)], parallel=True)
        for n, text in enumerate(["d0", "", "\ufeff", "d3"])
    ]
    tables = written(tmp_path, *rows)
    assert bitext(tmp_path) == {"train.en-de.de.txt": ["d0", "d3"], "train.en-de.en.txt": ["e0", "e3"]}
    assert tables.counted()["left_out"] == {
        "sentence pairs with a side left empty": 2,
        "texts with control characters, now without": 1,
    }
    assert tables.counted()["sentence_pairs"] == {"train": {"en-de": 2}}


@pytest.mark.parametrize("last", [("en", "e"), ("fr", "")], ids=["alike", "not alike"])
def test_rows_that_are_alike_are_paired_as_one_by_one(tmp_path, last):
    splits = ["train", "test", "train", "valid"]
    rows = [
        Row(split, [("de", f"d{n}"), ("en", f"e{n}"), ("fr", f"f{n}")], parallel=True) for n, split in enumerate(splits)
    ]
    rows.append(Row("test", [("de", "d"), ("fr", "f"), last], parallel=True))
    found = []
    for name, several in {"together": [rows], "one by one": [[row] for row in rows]}.items():
        with TableWriter(tmp_path / name / "data", declared(), Source(None), False) as tables:
            for some in several:
                add(tables, some)
        found.append((bitext(tmp_path / name), [*tables.pairs.items()], tables.counted()))
    assert found[0] == found[1]
    assert found[0][0]["train.en-de.de.txt"] == ["d0", "d2"]
    assert list(tables.pairs)[:3] == [("train", "en", "de"), ("train", "en", "fr"), ("test", "en", "de")]


def declared() -> Corpus:
    return tiny.declaration().model_copy(update={"languages": ["en", "de", "fr"]})


def test_a_picture_of_several_splits_is_one_picture(tmp_path):
    rows = [
        Row(split, [("en", text)], image="a.jpg") for split, text in [("train", "x"), ("test", "y"), ("train", "z")]
    ]
    tables = written(tmp_path, *rows, Row("test", [("en", "w")], image="b.jpg"))
    assert [cells[0] for cells in images(tmp_path)] == ["a.jpg", "b.jpg"]
    assert [cells[2] for cells in captions(tables)] == ["train", "test", "train", "test"]
    assert [tables.pictures.of(number) for number in range(2)] == [("train", "test"), ("test",)]
    counts = tables.counted()
    assert (counts["images"], counts["splits"]) == (2, {"train": 1, "test": 2})


def test_everything_is_counted(tmp_path):
    tables = written(
        tmp_path,
        Row("train", [("en", "a"), ("de", "b")], image="1", stratum="x", parallel=True),
        Row("train", [("en", "a"), ("de", "")], image="2", stratum="y", parallel=True),
        Row("test", [("en", "a"), ("en", "c"), ("fr", "b")], image="3", stratum="x", parallel=True),
        Row("valid", [("en", "a"), ("fr", "b")], parallel=True),
    )
    assert tables.counted() == {
        "images": 3,
        "missing_pictures": 3,
        "rows": {"read": 4, "kept": 4, "left_out": {}, "ignored": {}, "examples": {"missing_pictures": "1"}},
        "left_out": {
            "captions left empty": 1,
            "sentence pairs with a side left empty": 1,
            "texts without a translation at their place": 1,
        },
        "splits": {"train": 2, "test": 1},
        "strata": {"train": {"x": 1, "y": 1}, "test": {"x": 1}},
        "captions": {"train": {"en": 2, "de": 1}, "test": {"en": 2, "fr": 1}},
        "sentence_pairs": {"train": {"en-de": 1}, "test": {"en-fr": 1}, "valid": {"en-fr": 1}},
    }


def test_splits_are_drawn_where_a_row_has_none(tmp_path):
    rows = [Row("", [("en", f"sentence {n}"), ("de", f"Satz {n}")], parallel=True) for n in range(200)]
    given = Row("valid", [("en", "given"), ("de", "gegeben")], parallel=True)
    tables = written(tmp_path, *rows[:90], given, *rows[90:], splits={"valid": 0.1, "test": 0.3})
    counts = tables.counted()
    assert counts["sentence_pairs"] == {"train": {"en-de": 120}, "valid": {"en-de": 21}, "test": {"en-de": 60}}
    assert counts["drawn"] == {"train": 120, "valid": 20, "test": 60}


def test_pictures_keep_the_order_of_rows_while_splits_are_drawn(tmp_path):
    names = [f"{n}.jpg" for n in range(50)]
    rows = [Row("", [("en", name)], image=name) for name in names]
    rows[7] = Row("test", [("en", "given")], image=names[7])
    tables = written(tmp_path, *rows, splits={"test": 0.3})
    assert [cells[0] for cells in images(tmp_path)] == names == list(tables.pictures.numbers)


def test_pictures_without_texts_are_drawn_too(tmp_path):
    rows = [Row("", [], image=f"cat/{n}.jpg", stratum="cat") for n in range(50)]
    assert written(tmp_path, *rows, splits={"test": 0.5}).counted()["splits"] == {"test": 25, "train": 25}


def test_a_split_is_drawn_of_a_text_with_a_lone_surrogate(tmp_path):
    tables = written(tmp_path, Row("", [("en", "a\ud800"), ("de", "b")], parallel=True), splits={"test": 1.0})
    assert tables.counted()["sentence_pairs"] == {"test": {"en-de": 1}}


def test_an_error_while_rows_wait_is_not_hidden(tmp_path):
    row = Row("", [("en", "a")], image="")
    corpus = tiny.declaration().model_copy(update={"splits": {"test": 0.5}})
    tables = TableWriter(tmp_path / "data", corpus, Source(None), False).__enter__()
    add(tables, [row])
    tables.__exit__(ZeroDivisionError, None, None)  # writes nothing: the row without a name would be another error
    assert len(tables.pictures) == 0


def test_rows_that_give_nothing_are_counted_with_their_reason(tmp_path):
    tables = written(
        tmp_path,
        Row("train", [("en", "a"), ("de", " ")], parallel=True),
        Row("train", [("en", "alone")], parallel=True),
        Row("train", [("en", "a"), ("de", "b")]),
        Row("train", []),
        Row("train", [("en", "a"), ("de", "b")], parallel=True),
    )
    rows = tables.counted()["rows"]
    assert (rows["read"], rows["kept"]) == (5, 1)
    assert rows["left_out"] == {"rows without a sentence pair that is kept": 2, "rows without a picture": 2}
    assert rows["examples"]["rows without a picture"] == "en: 'a'; de: 'b'"


def test_pictures_are_found_and_missing_ones_counted(tmp_path):
    found = tmp_path / "pictures" / "deep" / "a.jpg"
    found.parent.mkdir(parents=True)
    found.touch()
    rows = [
        Row("train", [("en", "x")], image=image, file=file) for image, file in [("a", None), ("b", None), ("c", "z")]
    ]
    tables = written(tmp_path, *rows, rows[1], source=Source(tmp_path / "pictures"))
    assert [cells[3] for cells in images(tmp_path)] == [str(found), "", str(Path("z").absolute())]
    assert tables.counted()["missing_pictures"] == 1


def test_addresses_are_looked_up_by_their_ends_only_where_these_are_unique(tmp_path):
    (tmp_path / "image.jpg").touch()
    row = Row("train", [("en", "x")], image="http://x.org/1/image.jpg")
    for pictures, missing in ((None, 1), ("flickr30k", 0)):
        tables = written(tmp_path, row, source=Source(tmp_path), pictures=pictures)
        assert tables.counted()["missing_pictures"] == missing


def test_pictures_that_the_reader_draws_have_no_file(tmp_path):
    tables = written(tmp_path, Row("train", [("en", "x")], image="a"), drawn=True)
    assert (tmp_path / "data" / "images.tsv").read_text() == "image\tgroup\tstratum\na\t0\tall\n"
    assert tables.counted()["missing_pictures"] == 0


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\nb", "a\x85b", "a\x00", "a\ud800"], ids=ascii)
def test_a_name_that_no_table_can_hold_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="has a character that a table cannot hold; rename the picture"):
        written(tmp_path, Row("train", [("en", "x")], image=name))


@pytest.mark.parametrize("stratum", ["a\tb", "a\rb", "a\nb", "\ud800"], ids=ascii)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_class_that_no_table_can_hold_is_refused(tmp_path, stratum, rows):
    names = [f"{number}.jpg" for number in range(rows)]
    all_rows = [Row("train", [], image=name, stratum="cat" if name < names[-1] else stratum) for name in names]
    with pytest.raises(DataError, match=f"of picture '{names[-1]}' has a character .* rename the class"):
        written(tmp_path, *all_rows)


def test_the_first_wrong_row_is_named(tmp_path):
    wrong = [Row("train", [], image="b"), Row("dev", [], image="c"), Row("train", [], image="a\tb")]
    with pytest.raises(DataError, match="split 'dev'"):
        written(tmp_path, Row("train", [], image="a"), *wrong)
    with pytest.raises(DataError, match="picture name"):
        written(tmp_path, *reversed(wrong))


def test_a_name_with_an_odd_space_fits(tmp_path):
    written(tmp_path, Row("train", [("en", "x")], image="Screenshot 9.41\u202fAM.png"))
    assert images(tmp_path)[0][0] == "Screenshot 9.41\u202fAM.png"


def test_a_picture_without_a_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="a picture has no name"):
        written(tmp_path, Row("train", [("en", "x")], image=""))


@pytest.mark.parametrize("split", ["dev", "train/x", "train.x", "../valid", "test x", "test\n"])
def test_a_split_that_no_file_can_be_named_after_is_refused(tmp_path, split):
    with pytest.raises(DataError, match="call it train, valid or test"):
        written(tmp_path, Row("train", [("en", "x")], image="a"), Row(split, [("en", "x")], image="a"))


def test_a_path_that_no_table_can_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="a path with a character that a table cannot hold; rename the file"):
        written(tmp_path, Row("train", [("en", "x")], image="a", file="x\ty/a.jpg"))


def test_sides_are_named_as_fairseq_names_them(tmp_path):
    left, right = side_prefixes(tmp_path, ("test_2017", "en", "zh_tw"))
    assert [raw_text(left).name, right.name] == ["test_2017.en-zh_tw.en.txt", "test_2017.en-zh_tw.zh_tw"]
