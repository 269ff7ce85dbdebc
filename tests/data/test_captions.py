"""Prepared tables whose pictures are files, members of tars, or not there yet."""

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mclip_kit.data import images
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.errors import DataError

CAPTIONS = [
    ("a", "en", "train_task2"),
    ("a", "de", "train"),
    ("a", "cs", "train"),
    ("b", "en", "train"),
    ("b", "en", "test"),
]


def folder(path: Path, files: list[str], text: str = "text") -> Path:
    """Pictures a, b, ... in some files, and the captions above."""
    path.mkdir(exist_ok=True)
    (path / "manifest.json").write_text("{}")
    names = [f"{chr(97 + number)}\t{number}\tall\t{file}\n" for number, file in enumerate(files)]
    rows = ["\t".join([*row, text]) + "\n" for row in CAPTIONS]
    (path / "images.tsv").write_text("image\tgroup\tstratum\tfile\n" + "".join(names), newline="")
    (path / "captions.tsv").write_text("image\tlanguage\tsplit\tcaption\n" + "".join(rows), newline="")
    return path


def red(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path, "PNG")
    return path


@pytest.fixture
def both(tmp_path: Path) -> Captions:
    return read_captions(folder(tmp_path / "data", ["", ""]))


def test_a_picture_is_read_from_a_file_or_where_it_lies_in_a_tar(tmp_path: Path) -> None:
    path = red(tmp_path / "red.png")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(path, "before.png")
        tar.add(path, "red.png")
    with tarfile.open(tmp_path / "0.tar") as tar:
        info = tar.getmembers()[1]
    inside = images.tar_member(tmp_path / "0.tar", info.offset_data, info.size)
    captions = read_captions(folder(tmp_path / "data", [inside, str(path), "../red.png"]))
    assert captions.files[1] == path
    assert [captions.picture(image).getpixel((1, 1)) for image in range(3)] == [(255, 0, 0)] * 3


def test_a_damaged_picture_is_named_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"no picture" * 100)
    names = [f"{tmp_path}/0.tar@0+100", f"{tmp_path}/0.tar@990+11", f"{tmp_path}/1.tar@0+9"]
    captions = read_captions(folder(tmp_path / "data", names))
    said = ["cannot identify its format", "the tar ends before", "No such file or directory"]
    for image, (name, why) in enumerate(zip(names, said, strict=True)):
        with pytest.raises(DataError) as caught:
            captions.picture(image)
        assert str(caught.value).startswith(f"{name}: not a readable picture: ")
        assert why in str(caught.value)
        assert "object at" not in str(caught.value)


def test_a_file_that_was_not_found_may_be_put_there_later(tmp_path: Path, both: Captions) -> None:
    assert list(both.files) == [tmp_path / "data" / "pictures" / name for name in ("a", "b")]
    with pytest.raises(DataError, match=r"/data/pictures/a: not a readable picture: No such file or directory$"):
        both.picture(0)
    red(tmp_path / "data" / "pictures" / "a")
    assert both.picture(0).size == (4, 4)
    absolute = read_captions(folder(tmp_path / "data", [str(tmp_path / "x.png"), ""]))
    assert list(absolute.files) == [tmp_path / "x.png", tmp_path / "data" / "pictures" / "b"]


def test_each_language_may_have_its_own_split(both: Captions) -> None:
    assert both.select("train").tolist() == [1, 2, 3]
    splits = {"cs": "train", "en": "train_task2"}
    assert both.select(splits).tolist() == [0, 2]
    assert both.select(splits, "all").tolist() == [0, 2]
    assert both.select(splits, ["cs"]).tolist() == [2]
    assert (
        both.select({"en": "train", "de": "train"}, ["de", "en", "de"]).tolist()
        == both.select("train", ["en", "de"]).tolist()
    )


def test_a_wrong_split_or_language_is_named(both: Captions) -> None:
    with pytest.raises(DataError, match="no split is given for fr; given are en from train, de from train"):
        both.select({"en": "train", "de": "train"}, ["en", "fr"])
    with pytest.raises(DataError, match="no split is given for an empty list of languages; given are none"):
        both.select({})
    with pytest.raises(DataError, match="no captions in split 'valid'; there are test, train, train_task2"):
        both.select({"en": "valid"})
    with pytest.raises(DataError, match="no test captions in de; there are en"):
        both.select({"en": "train", "de": "test"})


def test_no_character_but_the_newline_ends_a_row(tmp_path: Path) -> None:
    text = 'a\rb\x0bc\u2028d\x85"e'
    path = folder(tmp_path / "data", ["x\ry.png", "z.png"], text)
    captions = read_captions(path)
    assert captions.texts.tolist() == [text] * len(CAPTIONS)
    assert captions.files[0] == path / "x\ry.png"
    for table in ("images.tsv", "captions.tsv"):
        lines = (path / table).read_bytes().replace(b"\n", b"\r\n")
        (path / table).write_bytes(lines)
    assert read_captions(path).texts.tolist() == [text] * len(CAPTIONS)


def test_a_corpus_without_captions_says_so(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["x.png"])
    (path / "captions.tsv").write_text("image\tlanguage\tsplit\tcaption\n")
    with pytest.raises(DataError, match="no captions in split 'test'; there are none"):
        read_captions(path).select("test")


def test_the_gallery_of_a_split_has_its_pictures_with_and_without_captions(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ["", "", "", ""])
    assert read_captions(path).gallery("train").tolist() == [0, 1]  # an earlier version named no others
    (path / "uncaptioned.tsv").write_text("image\tsplit\nd\ttest\nc\ttrain\nb\ttest\n", encoding="utf-8")
    found = read_captions(path)
    assert (found.gallery("train").tolist(), found.gallery("test").tolist()) == ([0, 1, 2], [1, 3])
    assert found.gallery("valid").tolist() == []
    only = found.only("test")
    assert (set(only.splits), only.gallery("test").tolist()) == ({"test"}, [1, 3])
    (path / "uncaptioned.tsv").write_text("image\tsplit\nc\ttrain\nz\ttest\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"uncaptioned\.tsv line 3: its image is not in images\.tsv"):
        read_captions(path)


def test_columns_that_nobody_asks_for_are_not_read(squares: Path) -> None:
    captions = read_captions(squares)
    captions.check("train")
    assert captions.all_keys_known
    assert not {"images", "groups", "keys"} & vars(captions).keys()
    assert len(captions.images) == len(captions.splits)
    assert "images" in vars(captions)
    with pytest.raises(AttributeError, match="Captions has no colour"):
        _ = captions.colour  # type: ignore[attr-defined]
