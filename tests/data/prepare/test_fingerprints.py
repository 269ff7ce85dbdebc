"""What counts as the same picture or text, and how the hashes are written."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclip_kit.data import hashes as hashing
from mclip_kit.data.hashes import hash_contents, hash_pictures, hash_texts
from mclip_kit.data.prepare import fingerprints
from mclip_kit.data.prepare.fingerprints import FingerprintWriter
from mclip_kit.engine.local import Processes

SAME = {
    "case": ["A man, riding a Horse.", "a man riding a horse", "A MAN RIDING A HORSE!"],
    "spacing": ["two  dogs\tplay\n", " two dogs play ", "two dogs\u00a0play", "two-dogs/play", "two dogs\r\nplay"],
    "width": ["ＡＢＣ １２３", "abc 123"],
    "composition": ["Ein Mädchen", "Ein Ma\u0308dchen", "EIN MÄDCHEN"],
    "sharp s": ["Straße", "STRASSE", "strasse"],
    "sigma": ["ΔΡΌΜΟΣ", "δρόμος", "δρόμοσ"],
    "ligature": ["ﬁsh", "fish"],
    "cyrillic": ["Собака бежит.", "собака бежит", "«СОБАКА» — бежит"],
    "chinese": ["一个男人，骑着马。", "一个男人 骑着马", "一个男人、骑着马！"],
    "kana": ["ｶﾞｷﾞ", "ガギ", "カ\u3099キ\u3099"],
    "hangul": ["한국어", unicodedata.normalize("NFD", "한국어")],
    "arabic": ["رجل، يركب حصانًا؟", "رجل يركب حصانًا"],
    "presentation forms": ["ﻻ", "لا"],
    "underscore": ["red_square", "red square"],
    "emoji": ["I ❤️ dogs", "I ❤ dogs", "i dogs"],
}
DIFFERENT = [
    "resume", "résumé", "12 dogs", "13 dogs", "हिन्दी", "हिनदी", "กา", "กำ", "كَتَبَ", "كُتِبَ", "か", "が", "twodogs",
    "two dogs", "一个男人", "一个女人", "𐐨𐐩", "𝟙𝟚", "☃ man", "men",
]  # fmt: skip


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@pytest.mark.parametrize("texts", SAME.values(), ids=SAME)
def test_what_corpora_change_about_a_caption_does_not_count(texts):
    hashes = hash_texts(texts)
    assert hashes.dtype == np.uint64
    assert hashes.all()
    assert len(set(hashes.tolist())) == 1


def test_letters_digits_and_marks_count():
    assert len(set(hash_texts(DIFFERENT).tolist())) == len(DIFFERENT)


def test_texts_without_letters_have_no_hash_and_keep_their_place():
    hashes = hash_texts(["a", "", "...", "❤️", "\n", "\ud800", "a"])
    assert hashes[0] == hashes[-1] != 0
    assert not hashes[1:-1].any()
    assert len(hash_texts([])) == 0


def test_hashes_stay_what_they_are():
    """Folders that were prepared earlier are compared with those of today."""
    assert hash_texts(["A dog."]).tolist() == hash_contents([b"a dog"]).tolist() == [14364831733120369406]
    assert hash_pictures(["COCO_val2014_000000391895.jpg"], None).tolist() == [16048247746808928924]


def test_a_picture_of_an_unknown_source_has_a_hash_if_its_name_is_unique_anywhere():
    shared = ["a/coco_TRAIN2014_000000000009.png#1", "Coco_val2017_7", "https://a.b/c.jpg", "a:b.jpg"]
    own = ["7.jpg", "coco_val.jpg", "a/b.jpg#2", ""]
    hashes_N = hash_pictures([*shared, *own], None)
    assert hashes_N[: len(shared)].all()
    assert not hashes_N[len(shared) :].any()
    assert hashes_N[0] == hash_pictures(["9"], "coco")[0]


def slow(text: str) -> str:
    """As `hashes._normalize`, a character at a time."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    selectors = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x180B, 0x1810)} - {0x180E}
    kept = [c if unicodedata.category(c)[0] in "LNM" and ord(c) not in selectors else " " for c in folded]
    return " ".join("".join(kept).split())


@settings(deadline=None)
@given(st.lists(st.text(), max_size=8), st.integers(1, 4))
def test_texts_are_hashed_alone_whatever_stands_beside_them(texts, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "BLOCK", block)
        hashes = hash_texts(iter(texts))
    assert hashes.tolist() == hash_contents([slow(text).encode() for text in texts]).tolist()


def test_pictures_go_by_name_where_names_are_unique():
    coco = hash_pictures(["COCO_train2014_000000391895.jpg", "391895"], "coco")
    assert coco[0] == coco[1] == hash_pictures(["x/COCO_val2014_000000391895.jpg"], None)[0]
    flickr = hash_pictures(["1000092795.jpg", "flickr/1000092795.JPG#2"], "flickr30k")
    assert flickr[0] == flickr[1] != hash_pictures(["1000092795.jpg"], "other")[0]
    assert hash_pictures(["1.jpg", "http://a/1.jpg"], None).astype(bool).tolist() == [False, True]


def test_pictures_go_by_content():
    hashes = hash_contents(iter([b"one", b"two", b"", b"one"]))
    assert hashes[0] == hashes[3] != hashes[1]
    assert hashes.astype(bool).tolist() == [True, True, False, True]


def test_hashes_are_appended_as_they_come(tmp_path):
    with FingerprintWriter(tmp_path) as writer:
        writer.add("train", "texts", numbers(5, 3))
        writer.add("train", "texts", numbers(258).astype(">u8"))
        writer.add("test", "texts", numbers(7))
    with FingerprintWriter(tmp_path) as writer:
        writer.add("train", "texts", numbers(5))
    assert (tmp_path / "fingerprints/train.texts.u64").read_bytes() == np.array([5, 3, 258, 5], "<u8").tobytes()
    assert sorted(path.name for path in tmp_path.rglob("*.u64")) == ["test.texts.u64", "train.texts.u64"]


def test_half_a_hash_of_a_killed_process_goes_when_writing_goes_on(tmp_path):
    with FingerprintWriter(tmp_path) as writer:
        writer.add("train", "texts", numbers(1))
    with open(tmp_path / "fingerprints/train.texts.u64", "ab") as handle:
        handle.write(b"half")
    with FingerprintWriter(tmp_path) as writer:
        writer.add("train", "texts", numbers(2))
    assert np.fromfile(tmp_path / "fingerprints/train.texts.u64", "<u8").tolist() == [1, 2]


def test_pictures_without_a_file_need_no_process(tmp_path, monkeypatch):
    rows = [f"{number}.jpg\t{number}\tall\t\n" for number in range(600)] + ["http://a/1.jpg\t600\tall\t\n"]
    (tmp_path / "images.tsv").write_text("".join(["image\tgroup\tstratum\tfile\n", *rows]), encoding="utf-8")
    monkeypatch.setattr(fingerprints, "LARGE", 0)
    monkeypatch.setattr(Processes, "map", lambda *_: pytest.fail("processes were started"))
    hashed, keys_N2 = fingerprints.hash_picture_table(tmp_path, 601, None, Processes(2), missing=601)
    assert np.flatnonzero(hashed["pictures"]).tolist() == [600]
    assert not hashed["contents"].any()
    assert not keys_N2.any()
    assert (hashed["contents"].shape, keys_N2.shape) == ((601,), (601, 2))


def test_a_file_among_pictures_without_one_is_hashed(tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"one")
    rows = ["a.jpg\t0\tall\t\n", "b.jpg\t1\tall\tb.jpg\n", "c.jpg\t2\tall\tlost.jpg\n"]
    (tmp_path / "images.tsv").write_text("".join(["image\tgroup\tstratum\tfile\n", *rows]), encoding="utf-8")
    hashed, keys_N2 = fingerprints.hash_picture_table(tmp_path, 3, None, 1, missing=1)
    assert hashed["contents"].tolist() == hash_contents([b"", b"one", b""]).tolist()
    assert keys_N2.any(1).tolist() == [False, True, False]
