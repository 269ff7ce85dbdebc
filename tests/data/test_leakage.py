"""Which items of test sets are also trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclip_kit.data import leakage
from mclip_kit.data.hashes import hash_contents, hash_pictures, hash_texts
from mclip_kit.data.leakage import (
    Leak,
    as_json,
    held_out_beside,
    leaks,
    leaks_of,
    read_json,
    without_fingerprints,
)
from mclip_kit.data.prepare.fingerprints import FingerprintWriter
from mclip_kit.errors import DataError


def fill(folder: Path, split: str, **kinds: np.ndarray) -> Path:
    """Give a prepared folder a split."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    with FingerprintWriter(folder) as writer:
        for kind, hashes in kinds.items():
            writer.add(split, kind, hashes)
    return folder


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_xtd10_lies_in_coco_by_name(tmp_path):
    names = [f"COCO_train2014_{number:012}.jpg" for number in range(1, 9)]
    held_out = [*names[:4], "COCO_val2014_000000000009.jpg"]
    coco = fill(tmp_path / "coco", "train", pictures=hash_pictures(names, "coco"))
    xtd10 = fill(tmp_path / "xtd10", "test", pictures=hash_pictures(held_out, None))
    assert leaks({coco: ["train"]}, [xtd10]) == [Leak(f"{coco} train", f"{xtd10} test", "pictures", 4, 5)]


def test_multi30k_lies_in_flickr30k_by_name_content_and_text(tmp_path):
    names, contents = ["1.jpg", "2.jpg", "3.jpg"], [b"1", b"2", b"3"]
    flickr = fill(
        tmp_path / "flickr30k",
        "train",
        pictures=hash_pictures(names, "flickr30k"),
        contents=hash_contents(contents),
        texts=hash_texts(["A dog runs.", "A cat sleeps.", "A man."]),
    )
    multi30k = fill(
        tmp_path / "multi30k",
        "test_2016_flickr",
        pictures=hash_pictures(["2.jpg", "3.jpg", "4.jpg"], "flickr30k"),
        contents=hash_contents([b"2", b"recompressed", b"4"]),
        texts=hash_texts(["a dog runs", "Ein Hund rennt.", "a man", "a woman"]),
    )
    found = leaks({flickr: ["train"]}, [multi30k])
    assert [(leak.kind, leak.count, leak.of) for leak in found] == [
        ("pictures", 2, 3),
        ("contents", 1, 3),
        ("texts", 2, 4),
    ]
    assert {leak.trained for leak in found} == {f"{flickr} train"}
    assert {leak.held_out for leak in found} == {f"{multi30k} test_2016_flickr"}


def test_a_clean_pair_says_nothing(tmp_path):
    one = fill(tmp_path / "one", "train", pictures=numbers(1, 2), texts=numbers(5))
    fill(one, "valid", pictures=numbers(8))
    other = fill(tmp_path / "other", "test", pictures=numbers(3, 8, 2**64 - 1), contents=numbers(1), texts=numbers(4))
    fill(other, "train", pictures=numbers(3))
    fill(other, "valid", pictures=numbers(1))
    fill(other, "latest", pictures=numbers(1))
    assert leaks({one: ["train", "restval"], tmp_path / "nowhere": ["train"]}, [one, other]) == []
    assert leaks({}, [other]) == leaks({one: ["train"]}, []) == []


def test_a_folders_own_test_is_compared_with_its_own_train(tmp_path):
    folder = fill(tmp_path / "one", "train", texts=numbers(1, 2, 3))
    fill(folder, "test.2017", texts=numbers(3, 4))
    name = f"{folder} test.2017"
    assert leaks({folder: ["train"]}, [folder]) == [Leak(f"{folder} train", name, "texts", 1, 2)]
    assert leaks({folder: ["test.2017"]}, [folder]) == [Leak(name, name, "texts", 2, 2)]


def test_several_training_splits_are_one_part(tmp_path):
    one = fill(tmp_path / "one", "train", texts=numbers(1, 2))
    fill(one, "restval", texts=numbers(2, 3))
    other = fill(tmp_path / "other", "test", texts=numbers(1, 2, 3, 4))
    found = leaks({one: ["train", "restval"]}, [other])
    assert found == [Leak(f"{one} restval, train", f"{other} test", "texts", 3, 4)]


def test_duplicates_count_once_and_zero_never(tmp_path):
    one = fill(tmp_path / "one", "train", contents=numbers(0, 1, 1, 0, 1))
    other = fill(tmp_path / "other", "test", contents=numbers(0, 1, 0, 1, 2, 2))
    assert [(leak.count, leak.of) for leak in leaks({one: ["train"]}, [other, other])] == [(1, 2)]


def test_order_is_that_of_names_and_kinds(tmp_path):
    for name in "cab":
        for split in ("test_b", "train", "test_a"):
            fill(tmp_path / name, split, texts=numbers(1), pictures=numbers(1), contents=numbers(1))
    folders = [tmp_path / name for name in "bca"]
    found = [(leak.held_out, leak.trained, leak.kind) for leak in leaks({f: ["train"] for f in folders}, folders)]
    expected = [
        (f"{tmp_path / test} test_{split}", f"{tmp_path / train} train", kind)
        for test in "abc"
        for split in "ab"
        for train in "abc"
        for kind in ("pictures", "contents", "texts")
    ]
    assert found == expected


HASHES = st.lists(st.one_of(st.integers(0, 20), st.integers(2**64 - 20, 2**64 - 1)), max_size=40)


@settings(deadline=None)
@given(HASHES, HASHES, st.integers(1, 7))
def test_chunks_find_what_sets_find(tmp_path_factory, train, test, chunk):
    folder = fill(tmp_path_factory.mktemp("both"), "train", texts=numbers(*train))
    fill(folder, "test", texts=numbers(*test))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "CHUNK", chunk)
        found = [(leak.count, leak.of) for leak in leaks({folder: ["train"]}, [folder])]
    shared, held_out = set(train) & set(test) - {0}, set(test) - {0}
    assert found == ([(len(shared), len(held_out))] if shared else [])


def test_no_more_than_a_chunk_of_a_training_split_is_read_at_once(tmp_path, monkeypatch):
    folder = fill(tmp_path, "train", texts=np.arange(1, 100, dtype=np.uint64))
    monkeypatch.setattr(leakage, "CHUNK", 10)
    assert [len(chunk) for chunk in leakage._chunks(folder, "train", "texts")] == [10] * 9 + [9]


def test_a_damaged_file_is_named(tmp_path):
    folder = fill(tmp_path / "one", "train", texts=numbers(1, 2))
    other = fill(tmp_path / "other", "test", texts=numbers(1, 2))
    for damaged in (folder / "fingerprints/train.texts.u64", other / "fingerprints/test.texts.u64"):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-4])
        with pytest.raises(DataError) as caught:
            leaks({folder: ["train"]}, [other])
        message = f"{damaged}: damaged, its length is not a multiple of 8; prepare it with --again"
        assert str(caught.value) == message
        damaged.write_bytes(whole)


def test_lines_for_people():
    names = Leak("data/coco train", "data/xtd10 test", "pictures", 800, 1000)
    assert names.line() == (
        "data/xtd10 test: 800 of 1,000 pictures (by name) are in data/coco train; scores on them are no longer held out"
    )
    contents = Leak("a restval, train", "b test_2016", "contents", 12345, 12345)
    assert contents.line() == (
        "b test_2016: 12,345 of 12,345 pictures (by content) are in a restval, train; "
        "scores on them are no longer held out"
    )
    text = Leak("a train", "b test", "texts", 1, 2)
    assert text.line() == "b test: 1 of 2 texts is in a train; scores on it are no longer held out"
    assert Leak("a train", "b test", "texts", 1, 1).line().startswith("b test: 1 of 1 text is in a train;")
    assert "2 of 2 texts are in a train; scores on them are" in Leak("a train", "b test", "texts", 2, 2).line()


def test_folders_beside_are_those_that_can_be_compared(tmp_path, monkeypatch):
    ours = [fill(tmp_path / name, "train", texts=numbers(1)) for name in ("b", "a", ".c.part")]
    (tmp_path / "old").mkdir()
    (tmp_path / "old/manifest.json").write_text("{}")
    (tmp_path / "unfinished/fingerprints").mkdir(parents=True)
    assert held_out_beside(ours[0]) == [tmp_path / "a", tmp_path / "b"]
    assert without_fingerprints([tmp_path / "old", *ours, tmp_path / "nowhere"]) == [
        tmp_path / "old",
        tmp_path / "nowhere",
    ]
    assert held_out_beside(tmp_path / "nowhere/at_all") == []
    monkeypatch.chdir(tmp_path)
    assert held_out_beside(Path("b")) == [Path("a"), Path("b")]
    monkeypatch.chdir(tmp_path / "b")
    assert held_out_beside(Path()) == [tmp_path / "a", tmp_path / "b"]


def test_leaks_of_a_folder_are_those_of_its_training_and_of_its_tests(tmp_path):
    one = fill(tmp_path / "one", "train_a", texts=numbers(1, 2))
    fill(one, "test", texts=numbers(1, 5))
    fill(one, "valid", texts=numbers(6))
    two = fill(tmp_path / "two", "train", texts=numbers(5, 6, 7))
    fill(two, "test_x", texts=numbers(2, 7))
    expected = [
        Leak(f"{one} train_a", f"{one} test", "texts", 1, 2),
        Leak(f"{one} train_a", f"{two} test_x", "texts", 1, 2),
        Leak(f"{two} train", f"{one} test", "texts", 1, 2),
    ]
    assert leaks_of(one) == expected


def test_leaks_go_to_json_and_back(tmp_path):
    found = [Leak("a train", "b test", kind, 1, 2) for kind in leakage.KINDS]
    path = tmp_path / "leakage.json"
    assert read_json(path) == []
    path.write_text(json.dumps(as_json(found)), encoding="utf-8")
    assert read_json(path) == found
    entry = {"trained": "a train", "held_out": "b test", "kind": "pictures", "count": 1, "of": 2}
    assert as_json(found)[0] == entry


@pytest.mark.parametrize("content", [b"{", b'[{"trained": "a"}]', b"[1]", b"1", b"\xff"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "leakage.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"leakage\.json: not a list of leaks; remove it"):
        read_json(path)
