"""Folders of pictures: captions beside, or a folder per class."""

import json
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
    return accounted(root, **options)[0]


def accounted(root: Path, **options: Any) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and the account of what is not read."""
    tree = {"about": "folder", "reader": "folder", "languages": ["en", "de"], "licences": [], "obtain": "fetch it"}
    source = Source(root)
    found = list(folder.read(Corpus.model_validate(tree | {"options": options}), source).rows)
    return found, {"notes": []} | source.account.as_json()


def write(path: Path, content: str | dict[str, Any]) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


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


def test_pictures_without_a_text_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.txt", "b.jpg", "c.png", "README.txt", "a.npy", "b.npy")
    found, account = accounted(tmp_path)
    assert [row.texts for row in found] == [[("en", "text of a")]]
    assert account["left_out"] == {"pictures without a caption": 2}
    assert account["ignored"] == {
        ".txt files that are no caption of a picture": 1,
        ".npy files that are no caption of a picture": 2,
    }
    assert account["examples"]["pictures without a caption"] == str(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("files", "texts"),
    [
        ({"a.txt": "red"}, [("en", "red")]),
        ({"a.TXT": "red"}, [("en", "red")]),
        ({"a.jpg.txt": "red"}, [("en", "red")]),
        ({"a.caption": "red"}, [("en", "red")]),
        ({"a.en.txt": "red", "a.de.txt": "rot\nrötlich"}, [("de", "rot"), ("de", "rötlich"), ("en", "red")]),
        ({"a.txt": "red", "a.jpg.DE.txt": "rot"}, [("de", "rot"), ("en", "red")]),
        ({"a.json": {"caption": "red"}}, [("en", "red")]),
        ({"a.json": {"captions": ["red", "scarlet"], "width": 1}}, [("en", "red"), ("en", "scarlet")]),
        ({"a.json": {"text": "rot", "language": "DE"}}, [("de", "rot")]),
        ({"a.json": {"caption": {"en": "red", "de": "rot"}}}, [("de", "rot"), ("en", "red")]),
        ({"a.json": {"en": "red", "de": "rot"}}, [("de", "rot"), ("en", "red")]),
        ({"a.json": {"captions": [{"caption": "red"}, {"lang": "de", "text": "rot"}]}}, [("de", "rot"), ("en", "red")]),
        ({"a.jpg.json": {"caption": "red"}}, [("en", "red")]),
        ({"a.de.json": {"caption": "rot"}}, [("de", "rot")]),
        ({"a.txt": "red", "a.json": {"caption": "not read"}}, [("en", "red")]),
        ({"a.txt": "red", "a.caption": "not read"}, [("en", "red")]),
        ({"metadata.jsonl": {"file_name": "a.jpg", "text": "red"}}, [("en", "red")]),
        ({"metadata.jsonl": {"file_name": "a.jpg", "caption": ["red", "scarlet"]}}, [("en", "red"), ("en", "scarlet")]),
        ({"metadata.csv": 'file_name,text\na.jpg,"red, dark"\n'}, [("en", "red, dark")]),
        ({"metadata.csv": "file_name,en,caption_de\na.jpg,red,rot\n"}, [("de", "rot"), ("en", "red")]),
        ({"metadata.csv": "file_name,language,text\na.jpg,de,rot\na.jpg,en,red\n"}, [("de", "rot"), ("en", "red")]),
        ({"metadata.tsv": "file_name\ttext\na.jpg\tred\n", "a.txt": "not read"}, [("en", "red")]),
    ],
)
def test_captions_beside_are_read(tmp_path: Path, files: dict[str, Any], texts: list[tuple[str, str]]) -> None:
    fill(tmp_path, "sub/a.jpg")
    for name, content in files.items():
        write(tmp_path / "sub" / name, content)
    found, account = accounted(tmp_path)
    assert [(row.split, row.image, row.stratum) for row in found] == [("", "sub/a.jpg", "all")]
    assert sorted(found[0].texts) == texts
    assert folder.find_languages(tmp_path) == sorted({"en"} & {c for c, _ in texts}) + sorted(
        {c for c, _ in texts} - {"en"}
    )
    unread = sum("not read" in str(content) for content in files.values())
    assert sum(account["ignored"].values()) == unread


def test_all_that_is_not_read_of_metadata_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.jpg", "train/b.jpg", "train/c.jpg", "test/d.jpg")
    lines = [("a.jpg", "red"), ("b.jpg", None), ("gone.jpg", "x")]
    rows_of_train = [json.dumps({"file_name": name, "text": text, "width": 4}) for name, text in lines]
    write(tmp_path / "train" / "metadata.jsonl", "\n".join(rows_of_train))
    write(tmp_path / "test" / "metadata.csv", "file_name,text\nd.jpg,blue\n")
    found, account = accounted(tmp_path)
    assert [(row.split, row.image) for row in found] == [("test", "test/d.jpg"), ("train", "train/a.jpg")]
    assert account["left_out"] == {"pictures without a caption": 2}
    assert account["ignored"] == {
        "column width of metadata.jsonl": 1,
        "rows of metadata.jsonl whose picture is not there": 1,
    }
    assert account["notes"] == ["splits are those of the folders test, train"]
    write(tmp_path / "train" / "metadata.jsonl", {"text": "red"})
    with pytest.raises(DataError, match=r"metadata\.jsonl row 1: no column file_name; it has text"):
        rows(tmp_path)


def test_a_json_without_captions_is_no_caption(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/1.jpg")
    write(tmp_path / "cat" / "1.json", {"shapes": [], "imageWidth": 4})
    found, account = accounted(tmp_path)
    assert [row.stratum for row in found] == ["cat", "dog"]
    assert account["ignored"] == {".json files beside a picture (kind: auto)": 1}
    write(tmp_path / "dog" / "1.json", {"caption": "a dog"})
    found, account = accounted(tmp_path)
    assert [row.texts for row in found] == [[("en", "a dog")]]
    assert account["left_out"] == {"pictures without a caption": 1}
    assert account["ignored"] == {".json files beside a picture (no caption in them)": 1}
    for wrong in ({"caption": 3}, "{broken"):
        write(tmp_path / "dog" / "1.json", wrong)
        with pytest.raises(DataError, match=r"dog/1\.json: no JSON with captions \("):
            rows(tmp_path)


def test_captions_in_other_languages_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a.fr.txt", "b.jpg", "b.en.txt", "b.fr.txt")
    found, account = accounted(tmp_path)
    assert [row.texts for row in found] == [[("en", "text of b.en")]]
    assert account["left_out"] == {"pictures without a caption in en, de": 1}
    assert account["ignored"] == {"captions in fr, which is not one of en, de": 2}


def test_damaged_pictures_and_files_of_the_system_are_counted(tmp_path: Path) -> None:
    fill(
        tmp_path, "a.jpg", "a.txt", "b.txt", "c.txt", "._a.jpg", "x/.hidden/d.jpg", "Thumbs.db", "desktop.ini", "e.heic"
    )
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "d.jpg").symlink_to(tmp_path / "gone.jpg")
    found, account = accounted(tmp_path)
    assert [row.image for row in found] == ["a.jpg"]
    assert account["left_out"] == {
        "pictures of 0 bytes": 1,
        "files with the ending of a picture that are none": 1,
        "links to a picture that is not there": 1,
        "pictures in .heic, which is not read (convert them to JPEG)": 1,
    }
    assert account["ignored"]["hidden files and files of the system"] == 4
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no pictures in it \(.*\); left out: 1 .*; fetch it"):
        rows(tmp_path)


def test_what_another_option_reads_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "shards/0.tar", "captions.csv")
    with pytest.raises(DataError, match=r"not read: 1 \.csv files .*--pairs FILE .*; not read: 1 \.tar .*--webdataset"):
        rows(tmp_path)
    fill(tmp_path, "a.jpg")
    assert len(accounted(tmp_path)[1]["ignored"]) == 2


@pytest.mark.parametrize("names", [("train", "test"), ("training", "validation"), ("train2014", "val2014"), ("Train",)])
def test_folders_of_splits_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path, *(f"data/{name}/{label}/1.jpg" for name in names for label in ("cat", "dog")))
    meant = {"train": "train", "training": "train", "train2014": "train", "test": "test"}
    found, account = accounted(tmp_path)
    assert {(row.split, row.stratum) for row in found} == {
        (meant.get(name.lower(), "valid"), label) for name in names for label in ("cat", "dog")
    }
    assert len({row.image for row in found}) == len(found)
    assert account["notes"][1] == "no captions beside; 2 classes: cat, dog"


def test_a_flat_folder_without_captions_is_a_gallery(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a.png")
    found, account = accounted(tmp_path)
    assert [(row.split, row.image, row.texts, row.stratum) for row in found] == [
        ("", "a.png", [], "all"),
        ("", "b.jpg", [], "all"),
    ]
    assert account["notes"] == ["no captions and no classes: a gallery of 2 pictures"]
    fill(tmp_path, "deep/er/c.jpg")
    assert [row.image for row in rows(tmp_path, kind="gallery")] == ["a.png", "b.jpg", "deep/er/c.jpg"]


def test_without_texts_folders_are_classes(tmp_path: Path) -> None:
    fill(tmp_path, "deep/images/dog/1.jpg", "deep/images/cat/1.jpg", "deep/images/cat/._2.jpg", "README.txt")
    found = rows(tmp_path, split="test")
    assert [(row.image, row.stratum, row.texts) for row in found] == [
        ("cat/1.jpg", "cat", []),
        ("dog/1.jpg", "dog", []),
    ]
    assert [row.file for row in found] == [str(tmp_path / "deep" / "images" / str(row.image)) for row in found]
    with pytest.raises(DataError, match=r"no picture has a caption in a \.txt .*, such as deep/images/cat/1\.txt"):
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
    fill(tmp_path, "old/cat/1.jpg", "old/dog/1.jpg", "new/cat/1.jpg")
    with pytest.raises(DataError, match=r"new/cat/1\.jpg: a picture outside the class folders of \S*/old;"):
        rows(tmp_path)
    assert len(rows(tmp_path, kind="gallery")) == 3  # as the message says


def test_classes_need_folders(tmp_path: Path) -> None:
    fill(tmp_path, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    for place in (tmp_path, tmp_path / "val"):
        with pytest.raises(DataError, match=r"/val.*: holds all pictures; sort them into a folder for each class"):
            rows(place, kind="classes", split="test")


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


def test_links_are_followed_once(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "cats/1.jpg")
    inside = fill(tmp_path / "inside", "cat/2.jpg", "dog/2.jpg")
    (inside / "cat" / "1.jpg").symlink_to(outside / "cats" / "1.jpg")
    (inside / "cat" / "3.jpg").symlink_to(inside / "cat" / "2.jpg")
    (inside / "linked").symlink_to(outside / "cats")
    (inside / "linked_again").symlink_to(outside / "cats")
    (inside / "loop").symlink_to(inside)
    (inside / "above").symlink_to(tmp_path)
    (inside / "itself").symlink_to(inside / "itself")
    (outside / "cats" / "back").symlink_to(inside)
    found, account = accounted(inside)
    assert [row.image for row in found] == ["cat/1.jpg", "cat/2.jpg", "cat/3.jpg", "dog/2.jpg", "linked/1.jpg"]
    assert account["ignored"]["links to folders that are read anyway"] == 4
    (tmp_path / "link").symlink_to(inside)
    assert len(rows(tmp_path / "link")) == 5


@pytest.mark.parametrize("name", CLASSES)
def test_imagenet_and_its_kin_are_read_as_declared(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "README.txt", *CLASSES[name])
    found = list(folder.read(declaration(name), Source(tmp_path)).rows)
    assert [row.image for row in found] == CLASSES[name]
    assert [row.stratum for row in found] == [picture.partition("/")[0] for picture in CLASSES[name]]
    assert {row.split for row in found} == {"test"}
    assert not any(row.texts for row in found)


def test_a_number_called_id_or_no_is_no_caption(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / "a.json", {"id": "0001", "no": "7", "en": "red"})
    write(tmp_path / "b.json", {"id": "0002", "caption": {"en": "blue", "id": "biru"}})
    write(tmp_path / "metadata.csv", "id,no,file_name,text,caption_id\n3,8,c.jpg,green,9\n")
    assert folder.find_languages(tmp_path) == ["en"]
    found, account = accounted(tmp_path)
    assert [row.texts for row in found] == [[("en", "red")], [("en", "blue")], [("en", "green")]]
    assert account["ignored"] == {
        "captions in id, which is not one of en, de": 1,
        **{f"column {name} of metadata.csv": 1 for name in ("caption_id", "id", "no")},
    }
    tree = {"about": "folder", "reader": "folder", "languages": ["en", "id"], "licences": [], "obtain": "fetch it"}
    wanted = folder.read(Corpus.model_validate(tree), Source(tmp_path)).rows
    assert next(row.texts for row in wanted) == [("id", "0001"), ("en", "red")]


def test_folders_of_splits_that_are_not_taken_are_named(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{part}/{part}.{kind}" for part in ("train", "test", "extra") for kind in ("jpg", "txt")))
    found, account = accounted(tmp_path)
    assert {row.split for row in found} == {""}
    assert account["notes"] == ["folders test, train are not taken as splits, as extra/extra.jpg is in none of them"]
