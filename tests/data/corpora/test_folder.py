"""Folders of pictures: captions beside, or a folder per class."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mclip_kit.data.corpora import Corpus, Row, declaration, folder
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError, RecipeError

CLASSES = {
    "imagenet": ["n01440764/ILSVRC2012_val_00000293.JPEG", "n01443537/ILSVRC2012_val_00000236.JPEG"],
    "imagenet_v2": ["0/0af3f1b55de791c4144e2fb6d7dfe96dfc22d3fc.jpeg", "10/x.jpeg", "9/y.jpeg"],
    "imagenet_a": ["n01498041/0.000116_digital clock.jpg", "n01531178/x.jpg"],
    "imagenet_r": ["n01443537/art_0.jpg", "n01484850/cartoon_3.jpg"],
    "imagenet_sketch": ["n01440764/sketch_0.JPEG", "n01443537/sketch_1.JPEG"],
    "objectnet": ["air_freshener/0.png", "alarm_clock/1.png"],
}


def fill(root: Path, *names: str) -> Path:
    """Pictures and texts, by their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            Image.new("RGB", (4, 4), "red").save(path)
        else:
            path.write_text(f"text of {path.stem}\n", encoding="utf-8")
    return root


def rows(root: Path, **options: Any) -> list[Row]:
    tree = {"about": "folder", "reader": "folder", "languages": ["en", "de"], "licences": [], "obtain": "fetch it"}
    return list(folder.read(Corpus.model_validate(tree | {"options": options}), Source(root)).rows)


def test_img2dataset_s_files_become_rows_in_order(tmp_path: Path) -> None:
    fill(
        tmp_path, *(f"{part}/{name}.{kind}" for part in ("00001", "00000") for name in "ba" for kind in ("jpg", "txt"))
    )
    fill(tmp_path, "00000.parquet", "00000/a.json", "top.png", "top.txt")
    (tmp_path / "00000" / "b.txt").write_text("one\nzwei \u2028 drei\r\n\nlast", encoding="utf-8")
    (tmp_path / "top.txt").write_text("")
    found = rows(tmp_path, split="train", language="de")
    assert [row.image for row in found] == ["00000/a.jpg", "00000/b.jpg", "00001/a.jpg", "00001/b.jpg", "top.png"]
    assert found[0].texts == [("de", "text of a")]
    assert found[1].texts == [("de", "one"), ("de", "zwei \u2028 drei"), ("de", ""), ("de", "last")]
    assert found[4].texts == [("de", "")]
    assert {row.split for row in found} == {"train"}
    assert [row.file for row in found] == [str(tmp_path / str(row.image)) for row in found]


def test_pictures_without_a_text_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, "a.jpg", "a.txt", "b.jpg", "c.png", "README.txt")
    assert [row.texts for row in rows(tmp_path)] == [[("en", "text of a")]]
    assert "left out 2 pictures that have no .txt" in "".join(capsys.readouterr())


def test_without_texts_folders_are_classes(tmp_path: Path) -> None:
    fill(tmp_path, "deep/images/dog/1.jpg", "deep/images/cat/1.jpg", "deep/images/cat/._2.jpg", "README.txt")
    found = rows(tmp_path, split="test")
    assert [(row.image, row.stratum, row.texts) for row in found] == [
        ("cat/1.jpg", "cat", []),
        ("dog/1.jpg", "dog", []),
    ]
    assert [row.file for row in found] == [str(tmp_path / "deep" / "images" / str(row.image)) for row in found]
    with pytest.raises(DataError, match=r"no picture has a \.txt, such as deep/images/cat/1\.txt"):
        rows(tmp_path, kind="captions")
    fill(tmp_path, "deep/images/cat/1.txt")
    assert rows(tmp_path)[0].texts == [("en", "text of 1")]
    assert [row.stratum for row in rows(tmp_path, kind="classes")] == ["cat", "dog"]


@pytest.mark.parametrize("stray", ["stray.jpg", "cat/more/stray.jpg"])
def test_a_picture_outside_the_class_folders_is_named(tmp_path: Path, stray: str) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/1.jpg", stray)
    with pytest.raises(DataError, match=rf"/{stray}: a picture outside the class folders of {tmp_path}"):
        rows(tmp_path)


def test_two_folders_of_class_folders_are_one_too_many(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg")
    with pytest.raises(DataError, match=r"val/cat/1\.jpg: a picture outside the class folders of \S*/train;"):
        rows(tmp_path)


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    fill(tmp_path, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(DataError, match="/val: holds all pictures; sort them into a folder for each class"):
        rows(tmp_path)
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001\.JPEG: a picture outside the class folders"):
        rows(tmp_path / "val")


def test_wrong_folders_and_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures in it \(\.bmp, .*\); fetch it"):
        rows(tmp_path)
    with pytest.raises(DataError, match="the folder of the pictures is needed, unpacked; fetch it"):
        rows(fill(tmp_path, "a.zip") / "a.zip")
    with pytest.raises(RecipeError, match="language: fr; there are en, de"):
        rows(tmp_path, language="fr")
    fill(tmp_path, "a.jpg", "a.txt")
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xff\n")
    with pytest.raises(DataError, match=r"a\.txt line 2: not UTF-8 \(byte 0xff\)"):
        rows(tmp_path)


def test_links_out_of_the_folder_are_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = fill(tmp_path / "outside", "cat/1.jpg")
    inside = fill(tmp_path / "inside", "cat/2.jpg", "dog/2.jpg")
    (inside / "cat" / "1.jpg").symlink_to(outside / "cat" / "1.jpg")
    (inside / "cat" / "3.jpg").symlink_to(inside / "cat" / "2.jpg")
    (inside / "linked").symlink_to(outside / "cat")
    (inside / "loop").symlink_to(inside)
    assert [row.image for row in rows(inside)] == ["cat/2.jpg", "cat/3.jpg", "dog/2.jpg"]
    assert "skipped 3 links to folders or to files outside it, such as cat/1.jpg" in "".join(capsys.readouterr())
    (tmp_path / "link").symlink_to(inside)
    assert len(rows(tmp_path / "link")) == 3


@pytest.mark.parametrize("name", CLASSES)
def test_imagenet_and_its_kin_are_read_as_declared(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "README.txt", *CLASSES[name])
    found = list(folder.read(declaration(name), Source(tmp_path)).rows)
    assert [row.image for row in found] == CLASSES[name]
    assert [row.stratum for row in found] == [picture.partition("/")[0] for picture in CLASSES[name]]
    assert {row.split for row in found} == {"test"}
    assert not any(row.texts for row in found)
