"""Captions find their pictures by any of their names, and what does not fit is counted or named."""

import json
from pathlib import Path
from typing import Any

import pytest

from mclip_kit.data.corpora import Corpus, Row
from mclip_kit.data.corpora.annotations import read
from mclip_kit.data.corpora.source import Source
from mclip_kit.errors import DataError, RecipeError

TRAIN, VAL, TEST = "COCO_train2014_000000000009.jpg", "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg"
LANGUAGES = ("en", "ja", "zh")


def corpus(languages: tuple[str, ...] = LANGUAGES, pictures: str | None = "coco", **options: Any) -> Corpus:
    """A declaration with these options."""
    return Corpus(
        about="captions",
        reader="annotations",
        languages=list(languages),
        licences=[],
        obtain="made here",
        pictures=pictures,
        options=options,
    )


def rows(folder: Path, declared: Corpus) -> list[Row]:
    """What the reader finds."""
    return list(read(declared, Source(folder)).rows)


def put(folder: Path, name: str, content: Any) -> None:
    """A file of text, or of JSON."""
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def karpathy(*images: tuple[str, str, list[str]]) -> dict[str, Any]:
    """Karpathy's form, of (picture, split, captions)."""
    return {
        "images": [
            {"filename": name, "split": split, "sentences": [{"raw": raw, "tokens": []} for raw in raws]}
            for name, split, raws in images
        ],
        "dataset": "coco",
    }


def coco(images: list[tuple[int, str]], captions: list[tuple[int, str | None]]) -> dict[str, Any]:
    """COCO's form."""
    return {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [{"id": i, "image_id": n, "caption": text} for i, (n, text) in enumerate(captions)],
    }


SPLIT = {"splits": {"karpathy": "dataset.json"}}
ENGLISH = {"language": "en", "format": "karpathy", "files": ["dataset.json"]}
JAPANESE = {"language": "ja", "format": "coco", "files": ["ja_*.json"], "optional": True}
CHINESE = {"language": "zh", "format": "numbered", "files": ["zh.txt"], "optional": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, one of them in Karpathy's restval."""
    images = [(VAL, "test", ["a ", "b"]), (TRAIN, "train", ["c"]), (TEST, "restval", ["d"]), ("7.jpg", "val", [])]
    put(tmp_path, "dataset.json", karpathy(*images))
    return tmp_path


def test_captions_are_joined_by_their_picture(folder):
    put(folder, "ja_train.json", coco([(9, TRAIN)], [(9, "い"), (9, "ろ")]))
    put(folder, "ja_val.json", {"images": [], "annotations": [{"image_id": 42, "caption": "は"}]})
    put(folder, "zh.txt", f"{VAL[:-4]}#0\t一 个\n{TRAIN[:-4]}#zhm#1 二\t三\n\n000000000007#2\t四")
    assert rows(folder, corpus(captions=[ENGLISH, JAPANESE, CHINESE], **SPLIT)) == [
        Row("test", [("en", "a "), ("en", "b"), ("ja", "は"), ("zh", "一 个")], image=VAL),
        Row("train", [("en", "c"), ("ja", "い"), ("ja", "ろ"), ("zh", "二 三")], image=TRAIN),
        Row("train", [("en", "d")], image=TEST),
        Row("valid", [("zh", "四")], image="7.jpg"),
    ]


def test_optional_captions_may_lack_but_not_by_half(folder):
    captions = [ENGLISH, JAPANESE | {"files": ["ja_train.json", "ja_val.json"]}]
    assert len(rows(folder, corpus(captions=captions, **SPLIT))) == 4
    put(folder, "ja_train.json", coco([(9, TRAIN)], [(9, "い")]))
    with pytest.raises(DataError, match=r"ja_val.json is missing, plain or compressed"):
        read(corpus(captions=captions, **SPLIT), Source(folder))


def test_only_chosen_languages_are_read(folder):
    put(folder, "zh.txt", f"{VAL}#0 一")
    declared = corpus(("zh",), captions=[ENGLISH | {"files": ["none.json"]}, CHINESE], **SPLIT)
    assert rows(folder, declared) == [
        Row("test", [("zh", "一")], image=VAL),
        Row("train", [], image=TRAIN),  # the pictures of a split do not depend on the languages
        Row("train", [], image=TEST),
        Row("valid", [], image="7.jpg"),
    ]
    with pytest.raises(DataError, match=r"no captions in fr; made here"):
        read(corpus(("fr",), captions=[ENGLISH], **SPLIT), Source(folder))


def test_pictures_in_no_split_and_empty_captions_are_counted(folder):
    put(folder, "zh.txt", f"{VAL}#0 一\n1#0 x\n1#1 x\n2#0 x\n{TRAIN}#0  \n")
    put(folder, "ja_a.json", coco([], [(3, "x"), (9, "い"), (9, None), (42, "")]))
    source = Source(folder)
    found = list(read(corpus(captions=[ENGLISH, JAPANESE, CHINESE], **SPLIT), source).rows)
    assert [len(row.texts) for row in found] == [3, 2, 1, 0]  # a picture without captions is in the gallery
    assert source.account.left_out == {"pictures in no split, with their captions": 3}
    assert source.account.ignored == {"empty captions in ja": 2, "empty captions in zh": 1}


def test_pictures_of_two_folders_are_two(tmp_path):
    two = [(1, "train/000000.jpg"), (2, "val/000000.jpg")]
    put(tmp_path, "ja_a.json", coco(two, [(1, "い"), (2, "ろ"), (1, "は")]))
    assert rows(tmp_path, corpus(("ja",), None, captions=[JAPANESE])) == [
        Row("", [("ja", "い"), ("ja", "は")], image="train/000000.jpg"),
        Row("", [("ja", "ろ")], image="val/000000.jpg"),
    ]


def test_lists_of_pictures(tmp_path):
    put(tmp_path, "tr.txt", "1000\r\n\n")
    put(tmp_path, "te.txt", "A.jpg#0\n\nno_caption\n")
    put(tmp_path, "zh.txt", "1000.jpg#zhm#0 一\na#0 二\n")
    declared = corpus(("zh",), "flickr30k", splits={"lists": {"train": "tr.txt", "test": "te.txt"}}, captions=[CHINESE])
    assert rows(tmp_path, declared) == [  # the longer name finds the file
        Row("train", [("zh", "一")], image="1000.jpg"),
        Row("test", [("zh", "二")], image="A.jpg"),
        Row("test", [], image="no_caption"),
    ]


def test_without_splits_each_part_has_its_own(tmp_path):
    put(tmp_path, "ja_a.json", coco([(1, "one.jpg")], [(1, "い")]))
    put(tmp_path, "zh.txt", "two.jpg#0 一\none.jpg#0 二\n")
    captions = [JAPANESE | {"split": "test"}, CHINESE | {"split": "test"}]
    declared = corpus(("ja", "zh"), None, captions=captions)
    assert rows(tmp_path, declared) == [
        Row("test", [("ja", "い"), ("zh", "二")], image="one.jpg"),
        Row("test", [("zh", "一")], image="two.jpg"),
    ]
    captions = [JAPANESE | {"split": "test"}, CHINESE]
    with pytest.raises(DataError, match=r"zh.txt: picture one.jpg is in split none here, but was in test before; fix"):
        rows(tmp_path, corpus(("ja", "zh"), None, captions=captions))


def test_translations_line_up_by_their_number(tmp_path):
    put(tmp_path, "en.token", "1.jpg#0\ta\n1.jpg#1\tb\n1.jpg#2\tc\n")
    put(tmp_path, "zh.txt", "1#zhm#2 三\n1#zhm#0 一\n")
    english = {"language": "en", "format": "numbered", "files": ["en.token"]}
    declared = corpus(("en", "zh"), "flickr30k", captions=[english, CHINESE], parallel=True)
    assert rows(tmp_path, declared) == [
        Row("", [("en", "a"), ("zh", "一")], image="1.jpg", parallel=True),
        Row("", [("en", "b")], image="1.jpg", parallel=True),
        Row("", [("en", "c"), ("zh", "三")], image="1.jpg", parallel=True),
    ]


def test_translations_without_numbers_line_up_by_their_place(folder):
    put(folder, "ja_a.json", coco([], [(42, "い"), (9, "は"), (42, "ろ")]))
    found = rows(folder, corpus(captions=[ENGLISH, JAPANESE], parallel=True, **SPLIT))
    assert [row.texts for row in found] == [
        [("en", "a "), ("ja", "い")],
        [("en", "b"), ("ja", "ろ")],
        [("en", "c"), ("ja", "は")],
        [("en", "d")],
        [],
    ]


@pytest.mark.parametrize(
    ("segmented", "whole"),
    [
        ("两个 年轻 人", "两个年轻人"),
        ("一 只 狗  在 跑", "一只狗，在跑"),
        ("戴:v 着:u 帽子:n 的:u 男人:n ，:wd 站:v1", "戴着帽子的男人，站"),
        ("穿 T 恤 的 人 看 New York Times", "穿T恤的人看New York Times"),
        ("在 10:30 的 钟", "在10:30的钟"),
    ],
)
def test_segmented_chinese_is_put_together(tmp_path, segmented, whole):
    put(tmp_path, "zh.txt", f"1#zhb#0 {segmented}\n")
    declared = corpus(("zh",), None, captions=[CHINESE | {"segmented": True}])
    assert rows(tmp_path, declared)[0].texts == [("zh", whole)]


IMAGE = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a"}]}
WRONG = {
    "no list": ("dataset.json", [], r"dataset.json: has no list 'images'; is it the file"),
    "no name": ("dataset.json", {"images": [{}]}, r"images\[0\] has no 'split' \(str\); fetch"),
    "an odd split": ("dataset.json", {"images": [IMAGE | {"split": "dev"}]}, r"images\[0\] has split 'dev', none of"),
    "two splits": (
        "dataset.json",
        {"images": [IMAGE, IMAGE | {"split": "test"}]},
        r"dataset.json: picture 1.jpg is in split test here, but was in train before; fix the lists",
    ),
    "no sentences": (
        "dataset.json",
        {"images": [IMAGE | {"sentences": None}]},
        r"images\[0\] has no 'sentences' \(list",
    ),
    "no raw": ("dataset.json", {"images": [IMAGE | {"sentences": ["a"]}]}, r"images\[0\].sentences\[0\] has no 'raw'"),
    "no annotations": ("ja_a.json", {"images": []}, r"ja_a.json: has no list 'annotations'"),
    "no id": ("ja_a.json", {"images": [{"id": "x"}]}, r"images\[0\] has no 'id' \(int\)"),
    "no image_id": ("ja_a.json", {"images": [], "annotations": [{}]}, r"annotations\[0\] has no 'image_id' \(int\)"),
    "no caption": ("ja_a.json", {"images": [], "annotations": [{"image_id": 9}]}, r"annotations\[0\] has no 'caption'"),
    "no number": ("zh.txt", f"{VAL}#0 a\n{VAL} a\n", r"zh.txt line 2: does not begin with NAME#N or NAME#TAG#N; fix"),
    "an odd number": ("zh.txt", f"{VAL}#x a", r"zh.txt line 1: does not begin"),
    "too many parts": ("zh.txt", f"{VAL}#a#b#0 a", r"zh.txt line 1: does not begin"),
    "another corpus": ("zh.txt", "x#0 a\ny#0 b\n", r"zh.txt: none of its 2 pictures is in a split; is it from another"),
    "no JSON": ("dataset.json", "{", r"dataset.json: not JSON \(.*\); correct it, or fetch it again"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(folder, what):
    name, content, message = WRONG[what]
    put(folder, name, content)
    with pytest.raises(DataError, match=message) as error:
        rows(folder, corpus(captions=[ENGLISH, JAPANESE, CHINESE], **SPLIT))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("splits", [{}, {"karpathy": "a", "lists": {"train": "b"}}])
def test_splits_are_said_one_way(folder, splits):
    with pytest.raises(RecipeError, match="give either karpathy or lists"):
        read(corpus(captions=[ENGLISH], splits=splits), Source(folder))


def test_files_are_found_before_rows_are_asked_for(tmp_path):
    put(tmp_path, "zh.txt", "1#0 a")
    with pytest.raises(DataError, match=r"dataset.json is missing"):
        read(corpus(captions=[CHINESE], **SPLIT), Source(tmp_path))
