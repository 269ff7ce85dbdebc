"""A name finds its own picture or none: by the longest common end of the paths, whatever way the name is written."""

import os
import unicodedata
from pathlib import Path

import pytest

from mclip_kit.data.corpora.matches import Matches
from mclip_kit.data.corpora.path_ends import Ends, split_path
from mclip_kit.data.corpora.picture_files import PictureFiles

SKUS = ["imgs/sku1/main.jpg", "imgs/sku2/main.jpg", "imgs/sku3/main.jpg"]


def made(folder: Path, *files: str) -> Path:
    """A folder with these files, which are empty."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def matches(folder: Path, *names: str, unique: bool = False) -> Matches:
    """What is found in a folder."""
    return PictureFiles(folder, unique=unique).match(lambda: names)


def found(folder: Path, *names: str, unique: bool = False) -> list[str | None]:
    """The file of each name, relative to the folder."""
    there = matches(folder, *names, unique=unique).found
    return [str(Path(there[name]).relative_to(folder)) if name in there else None for name in names]


@pytest.mark.parametrize(
    "names",
    [
        SKUS,
        [f"/mnt/old/{name}" for name in SKUS],
        [f"dataset/{name}" for name in SKUS],
        [name.replace("imgs", "dataset") for name in SKUS],
        [name.replace("imgs", "/home/me/photos") for name in SKUS],
        [name.partition("/")[2] for name in SKUS],
        [name.replace("/", "\\") for name in SKUS],
        ["C:\\data\\" + name.replace("/", "\\") for name in SKUS],
        [name.replace(".jpg", ".webp") for name in SKUS],
        [name.removesuffix(".jpg") for name in SKUS],
        [name.upper() for name in SKUS],
        [f"./{name}" for name in SKUS],
        [f"https://x.org/{name}" for name in SKUS],
        [f"/old/{SKUS[0]}", SKUS[1], f"dataset/{SKUS[2]}"],
    ],
)
def test_the_longest_common_end_decides(tmp_path, names):
    assert found(made(tmp_path, *SKUS), *names) == SKUS
    assert found(made(tmp_path / "deeper", *SKUS).parent, *names)[0] != "imgs/sku2/main.jpg"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (SKUS, ["imgs/sku1/main.jpg", "imgs/sku4/main.jpg", "imgs/sku5/main.jpg"]),
        (SKUS[:1], ["imgs/sku1/main.jpg", "imgs/sku4/main.jpg"]),
        (SKUS[:1], ["/old/imgs/sku1/main.jpg", "/old/imgs/sku4/main.jpg", "/old/imgs/sku5/main.jpg"]),
        (["train/sku1/front/main.jpg"], ["train/sku1/front/main.jpg", "train/sku4/front/main.jpg"]),
        (["a.jpg"], ["a.jpg", "a.png", "A.jpg"]),
        (["x/A.jpg"], ["A.jpg", "a.jpg"]),
    ],
)
def test_a_missing_picture_is_not_another_names_picture(tmp_path, files, names):
    there = matches(made(tmp_path, *files), *names)
    assert list(there.found) == names[:1]
    assert there.missing == len(names) - 1


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (SKUS[:1], ["imgs/sku4/main.jpg"]),
        (SKUS[:1], ["/old/imgs/sku4/main.jpg"]),
        (["b/main.jpg"], ["a/main.jpg"]),
        (["main.jpg"], ["imgs/sku1/main.jpg", "imgs/sku2/main.jpg"]),
        (["front/0.jpg", "back/0.jpg"], ["sku4/front/0.jpg", "sku4/back/0.jpg", "sku5/front/0.jpg"]),
        (["b/1.jpg", "b/2.jpg"], ["a/1.jpg", "a/2.jpg"]),
        (["image.jpg"], ["https://x.org/1/image.jpg"]),
        (["image.jpg"], ["https://x.org/1/image.jpg", "https://x.org/2/image.jpg"]),
        (["image"], ["https://x.org/image?id=1", "https://x.org/image?id=2"]),
        (["train/0.jpg", "other/1.jpg"], ["train/1.jpg"]),
    ],
)
def test_other_folders_are_not_guessed(tmp_path, files, names):
    there = matches(made(tmp_path, *files), *names)
    assert there.found == {}
    assert (there.missing, there.example) == (len(names), names[0])


def test_a_name_that_several_files_have_is_ambiguous(tmp_path):
    there = matches(made(tmp_path, *SKUS, "imgs/sku4/main.jpg"), "main.jpg")
    assert (there.found, there.missing, there.ambiguous) == ({}, 1, 1)
    assert there.where == f"main.jpg ({', '.join(SKUS)} and 1 more)"
    (tmp_path / "main.jpg").touch()  # exactly where the name says
    assert found(tmp_path, "main.jpg") == ["main.jpg"]
    there = matches(made(tmp_path / "endings", "x/a.jpg", "x/a.png"), "a.webp")
    assert there.where == "a.webp (x/a.jpg, x/a.png)"
    assert matches(made(tmp_path / "cases", "x/a.jpg", "x/A.JPG"), "A.jpg").ambiguous == 1
    there = matches(made(tmp_path / "one", "x/a.jpg"), "a.png", "a.jpg")
    assert list(there.found) == ["a.jpg"]
    assert there.where.startswith("a.png (")
    assert there.where.endswith("x/a.jpg, which belongs to another name)")


@pytest.mark.parametrize("name", ["x.avif", "x.jfif", "x.ppm", "x.heic", "noending", "a.b.c", "deep/noending"])
def test_a_file_of_exactly_the_name_is_the_picture(tmp_path, name):
    assert found(made(tmp_path, "z.jpg", name), name) == [name]
    assert found(tmp_path, f"/old/{name}", "/old/z.jpg") == [name, "z.jpg"]


def test_unicode_and_addresses_of_files(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "images/café ü.jpg") for form in ("NFC", "NFD"))
    made(tmp_path, nfd)
    assert found(tmp_path, nfc, Path(nfc).name) == [nfd, nfd]
    (tmp_path / "a b.jpg").touch()
    assert found(tmp_path, (tmp_path / "a b.jpg").as_uri()) == ["a b.jpg"]
    assert found(tmp_path, "file://localhost" + (tmp_path / "a b.jpg").as_uri()[7:]) == ["a b.jpg"]
    assert found(tmp_path, str(tmp_path / "a b.jpg")) == ["a b.jpg"]


def test_links_to_folders_are_followed_once(tmp_path):
    made(tmp_path / "elsewhere", "a.jpg")
    folder = made(tmp_path / "folder", "b.jpg", ".hidden/c.jpg", "._b.jpg")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert PictureFiles(folder).files == ["b.jpg", "link/a.jpg"]
    assert found(folder, "a.jpg", "b.jpg") == ["link/a.jpg", "b.jpg"]


def test_names_that_are_unique_by_declaration_need_no_folders(tmp_path):
    made(tmp_path, "val2017/000000000042.jpg", "train2014/COCO_train2014_000000000009.jpg")
    names = ["COCO_val2014_000000000042.jpg", "train2017/000000000042.jpg", "COCO_train2014_000000000009", "7.jpg"]
    old, new = "train2014/COCO_train2014_000000000009.jpg", "val2017/000000000042.jpg"
    assert found(tmp_path, *names, unique=True) == [new, new, old, None]
    assert found(tmp_path, names[1]) == [None]


def test_without_a_folder_only_whole_paths_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(made(tmp_path, "a.jpg"))
    finder = PictureFiles(None)
    assert finder.match(lambda: ["a.jpg", str(tmp_path / "a.jpg"), "x/a.jpg"]).missing == 2


def test_a_folder_that_is_also_the_source_is_looked_into_once(tmp_path, monkeypatch):
    made(tmp_path, "a.jpg")
    asked, isfile = [], os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: (asked.append(path), isfile(path))[1])
    finder = PictureFiles(tmp_path, tmp_path)
    assert finder.match(lambda: ["a.jpg", "b.jpg"]).found == {"a.jpg": str(tmp_path / "a.jpg")}
    assert asked == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]


def test_odd_names_are_missing(tmp_path):
    names = ["", "/", "..", "a\0b", "x" * 5000, "https://", "file://"]
    assert matches(made(tmp_path, "a.jpg"), *names).missing == len(names)


def test_each_end_is_sorted_once():
    """A lookup of the base name alone would compare each of the names with each of the files."""
    spelled = []

    def spell(parts: list[str]) -> list[str]:
        spelled.append(parts)
        return parts

    files = [f"imgs/sku{number}/main.jpg" for number in range(1000)]
    ends = Ends(files, spell)
    for number, file in enumerate(files):
        assert ends.longest(split_path(f"/old/{file}")) == ([number], 3)
    assert len(spelled) < 10 * len(files)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_names_in_parts_are_found_as_all_at_once(tmp_path, size):
    folder = made(tmp_path, "x/a/1.jpg", "x/a/2.JPG", "x/b/1.jpg", "5.jpg")
    names = ["old/a/1.jpg", "old/a/2.jpg", "old/b/1.jpg", "old/b/3.jpg", "5.jpg", "old/c/1.jpg"]
    for given in (names, names[:4], ["d/7.jpg"], []):
        parts = [given[start : start + size] for start in range(0, len(given), size)] + [[]]
        finder = PictureFiles(folder)
        found = finder.match_parts(lambda shared, of=finder, parts=parts: [of.look(part, shared) for part in parts])
        assert found == PictureFiles(folder).match(lambda given=given: given)
