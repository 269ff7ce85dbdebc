"""Queries and the confusion of languages, on embeddings that are known."""

from pathlib import Path

import numpy as np
import pytest

from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.qualitative import EmbeddedSplit, confused_pairs, confusion, extremes, margins


def test_margins_are_those_of_a_slow_loop() -> None:
    draw = np.random.default_rng(0)
    text_QD, image_GD = draw.normal(size=(700, 5)), draw.normal(size=(9, 5))
    groups_Q, groups_G = draw.integers(4, size=700), np.arange(9) % 3
    found = margins(text_QD, image_GD, groups_Q, groups_G)
    for query in range(700):
        scores = [float(text_QD[query] @ image) for image in image_GD]
        right = [s for s, group in zip(scores, groups_G, strict=True) if group == groups_Q[query]]
        wrong = [s for s, group in zip(scores, groups_G, strict=True) if group != groups_Q[query]]
        assert found[query] == (pytest.approx(max(right) - max(wrong), abs=1e-5) if right else -np.inf)


def test_confusion_shows_whether_embeddings_cluster_by_language() -> None:
    languages = np.array(["de", "en", "fr"] * 20)
    meaning, language = np.repeat(np.eye(20), 3, axis=0), np.tile(np.eye(3), (20, 1))
    names, neutral = confusion(meaning, languages)
    assert names == ["de", "en", "fr"]
    np.testing.assert_allclose(neutral, (1 - np.eye(3)) / 2)
    _, clustered = confusion(language, languages)
    np.testing.assert_allclose(clustered, np.eye(3))


def test_extremes_are_the_best_and_the_worst(squares: Path) -> None:
    captions = read_captions(squares)
    rows = captions.select("test")
    images = np.unique(captions.images[rows])
    image_GD = np.eye(len(images))
    place = {int(image): number for number, image in enumerate(images)}
    text_QD = image_GD[[place[int(image)] for image in captions.images[rows]]].copy()
    text_QD[0] *= -1  # its own picture is the last that it finds
    best, worst = extremes(EmbeddedSplit(captions, images, image_GD, rows, text_QD), count=3, top=2)
    assert worst[0].query == captions.texts[rows[0]]
    assert worst[0].right == [False, False]
    assert [row.right for row in best] == [[True, False]] * 3
    assert len({row.language for row in best}) == 3


def test_confused_pairs_are_counted_by_their_captions(squares: Path) -> None:
    captions = read_captions(squares)
    rows = captions.select("test")
    images = np.unique(captions.images[rows])
    image_GD = np.eye(len(images))
    finds = np.searchsorted(images, captions.images[rows])
    languages = captions.languages[rows].tolist()
    own = [np.flatnonzero(finds == place) for place in range(len(images))]
    finds[own[0]] = 3  # all three captions of the first picture find the fourth one
    finds[own[5][:2]] = 1  # two of the sixth find the second
    found, pictures = confused_pairs(EmbeddedSplit(captions, images, image_GD, rows, image_GD[finds]))
    name = [captions.names[image] for image in images]
    assert [(pair.picture, pair.found, pair.count, pair.captions) for pair in found] == [
        (name[0], name[3], 3, 3),
        (name[5], name[1], 2, 3),
    ]
    assert found[1].languages == [languages[query] for query in own[5][:2]]
    assert found[1].query == captions.texts[rows[own[5][0]]]
    assert set(pictures) == {name[0], name[3], name[5], name[1]}
    np.testing.assert_array_equal(pictures[name[3]], np.asarray(captions.picture(int(images[3]))))
    assert confused_pairs(EmbeddedSplit(captions, images, image_GD, rows, image_GD[finds]), count=1)[0] == found[:1]
    assert confused_pairs(EmbeddedSplit(captions, images, image_GD, rows[:0], image_GD[:0])) == ([], {})
