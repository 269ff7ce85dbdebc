"""Retrieval metrics against slow loops, with ties, several captions a picture and pictures that look the same."""

import shutil
from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.columns import Labels
from mclip_kit.errors import DataError
from mclip_kit.evaluate.qualitative import embedded
from mclip_kit.evaluate.ranks import ranks, recall
from mclip_kit.evaluate.retrieval import VALIDATION, Retrieval, evaluate, log_values, score, share
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import build_model
from tests import tiny


def slow_rank(query: np.ndarray, gallery: np.ndarray, group: int, groups: np.ndarray) -> int:
    """One more than the wrong items that are at least as near as the nearest right one."""
    nearness = [sum(float(x) * float(y) for x, y in zip(query, item, strict=True)) for item in gallery]
    best = max((near for near, other in zip(nearness, groups, strict=True) if other == group), default=-np.inf)
    return 1 + sum(near >= best and other != group for near, other in zip(nearness, groups, strict=True))


def slow_ranks(queries: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, groups: np.ndarray) -> list[int]:
    return [slow_rank(query, gallery, group, groups) for query, group in zip(queries, query_groups, strict=True)]


def whole_numbers(rows: int, width: int, largest: int, seed: int) -> np.ndarray:
    """Vectors whose products float32 holds exactly."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, (rows, width)).astype(np.float32)


CASES = {
    # name: queries, gallery, groups of queries, groups of the gallery, largest number
    "one right answer": (30, 30, np.arange(30), np.arange(30), 1000),
    "ties": (60, 60, np.arange(60), np.arange(60), 1),
    "several captions a picture": (60, 20, np.repeat(np.arange(20), 3), np.arange(20), 1),
    "pictures that look the same": (40, 40, np.arange(40) // 3, np.arange(40) // 3, 1),
    "more queries than answers": (50, 7, np.arange(50) % 7, np.arange(7), 3),
    "no right answer": (10, 12, np.arange(10) + 100, np.arange(12), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_those_of_slow_loops(name):
    queries, gallery, query_groups, groups, largest = CASES[name]
    queries_QD, gallery_GD = whole_numbers(queries, 4, largest, 0), whole_numbers(gallery, 4, largest, 1)
    found = ranks(queries_QD, gallery_GD, query_groups, groups)
    assert found.tolist() == slow_ranks(queries_QD, gallery_GD, query_groups, groups)


def test_the_nearest_right_answer_counts():
    gallery_GD = np.array([[0.9, 0], [1, 0], [0, 1], [0.5, 0]], np.float32)
    query_1D = np.array([[1, 0]], np.float32)
    assert ranks(query_1D, gallery_GD, np.array([7]), np.array([7, 8, 9, 7])).tolist() == [2]
    assert ranks(query_1D, gallery_GD, np.array([7]), np.array([9, 7, 8, 7])).tolist() == [1]


def test_right_answers_do_not_count_against_each_other():
    gallery_GD = np.array([[3.0], [2.0], [2.0], [1.0]], np.float32)
    assert ranks(np.array([[1.0]], np.float32), gallery_GD, np.array([1]), np.array([1, 1, 1, 2])).tolist() == [1]


def test_a_wrong_picture_as_near_as_the_right_one_comes_first():
    gallery_GD = np.array([[1.0, 0], [1.0, 0]], np.float32)
    assert ranks(gallery_GD, gallery_GD, np.array([0, 1]), np.array([0, 1])).tolist() == [2, 2]


@pytest.mark.parametrize("pictures", [17, 101, 1000])
@pytest.mark.parametrize("width", [1, 37, 192])
def test_constant_embeddings_score_at_most_chance(pictures, width):
    vector = np.random.default_rng(0).normal(size=width).astype(np.float32)
    same_ND = np.tile(vector / np.linalg.norm(vector), (pictures, 1))
    found = recall(ranks(same_ND, same_ND, np.arange(pictures), np.arange(pictures)))
    assert all(found[f"r{k}"] <= 100 * k / pictures for k in (1, 5, 10))


def test_embeddings_that_are_not_numbers_score_at_most_chance():
    gallery_GD = whole_numbers(50, 4, 9, 0)
    broken_QD = np.full_like(gallery_GD, np.nan)
    order = np.arange(50)
    assert recall(ranks(broken_QD, gallery_GD, order, order))["r1"] <= 2
    assert recall(ranks(gallery_GD, broken_QD, order, order))["r1"] <= 2


def test_a_thousand_queries_more_or_less_change_no_rank():
    queries_QD, gallery_GD = whole_numbers(2500, 4, 3, 0), whole_numbers(40, 4, 3, 1)
    query_groups, groups = np.arange(2500) % 23, np.arange(40) % 23
    parts = [slice(start, start + 100) for start in range(0, 2500, 100)]
    in_parts = [ranks(queries_QD[part], gallery_GD, query_groups[part], groups) for part in parts]
    np.testing.assert_array_equal(ranks(queries_QD, gallery_GD, query_groups, groups), np.concatenate(in_parts))


def test_recall_is_the_share_of_ranks_up_to_k_in_percent():
    assert recall(np.array([1, 1, 2, 5, 6, 10, 11, 400])) == {"r1": 25.0, "r5": 50.0, "r10": 75.0}


def test_scores_are_recalls_of_both_ways_and_their_mean():
    found = Retrieval(np.array([1, 2, 6, 11]), np.array([1, 1]), np.full(4, "a"), np.full(2, "a"), 2).scores()
    t2i, i2t = {"t2i_r1": 25.0, "t2i_r5": 50.0, "t2i_r10": 75.0}, {"i2t_r1": 100.0, "i2t_r5": 100.0, "i2t_r10": 100.0}
    assert found == {**t2i, **i2t, "mean_recall": 75.0, "t2i_median_rank": 4.0, "i2t_median_rank": 1.0}


def test_a_picture_without_a_caption_in_the_language_is_a_wrong_answer_but_no_question():
    image_GD, groups = np.eye(3, dtype=np.float32), np.arange(3)
    found = score(image_GD, image_GD[:2], groups, np.array([0, 1]), np.array(["a", "b", "c"]))
    assert found.i2t_G.tolist() == [1, 1]
    assert found.strata_G.tolist() == ["a", "b"]
    assert found.gallery == 3


def test_a_stratum_counts_its_own_queries_only():
    result = Retrieval(np.array([1, 9, 1]), np.array([3, 1]), np.array(["a", "b", "b"]), np.array(["a", "b"]), 2)
    assert (result.scores("a")["t2i_r1"], result.scores("a")["i2t_r1"]) == (100.0, 0.0)
    assert (result.scores("b")["t2i_r1"], result.scores("b")["i2t_r1"]) == (50.0, 100.0)


def test_both_directions_know_several_captions_and_pictures_that_look_the_same():
    images_GD, texts_QD = whole_numbers(12, 4, 2, 0), whole_numbers(30, 4, 2, 1)
    groups_G, text_images_Q = np.arange(12) // 2, np.arange(30) % 12
    strata_G = np.array(["a", "b"] * 6)
    found = score(images_GD, texts_QD, groups_G, text_images_Q, strata_G)
    text_groups = groups_G[text_images_Q]
    assert found.t2i_Q.tolist() == slow_ranks(texts_QD, images_GD, text_groups, groups_G)
    assert found.i2t_G.tolist() == slow_ranks(images_GD, texts_QD, groups_G, text_groups)
    assert found.strata_Q.tolist() == [strata_G[image] for image in text_images_Q]


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build_model(parse(tiny.recipe(squares), Recipe, "tiny")).eval()


def test_a_model_is_scored_by_its_own_embeddings(model, squares):
    captions = read_captions(squares)
    results = evaluate(model, captions, "test")
    assert list(results) == ["teacher", "en", "de", "fr"]
    for name, result in results.items():
        rows = captions.select("test", ["en" if name == "teacher" else name])
        images = np.unique(captions.images[rows])
        encode = model.encode_teacher_text if name == "teacher" else model.encode_text
        pictures_GD = model.encode_image([Image.fromarray(captions.pixels[i]) for i in images]).numpy()
        texts_QD = encode(captions.texts[rows].tolist()).numpy()
        places = np.searchsorted(images, captions.images[rows])
        expected = score(pictures_GD, texts_QD, captions.groups[images], places, captions.strata[images])
        np.testing.assert_allclose(result.t2i_Q, expected.t2i_Q, atol=1)  # float rounding may swap neighbours
        assert result.strata_Q.tolist() == expected.strata_Q.tolist()


@pytest.mark.parametrize("ranks", [3, 25])  # 25: some have nothing to do
def test_embeddings_in_shares_are_those_of_one_process(model, squares, ranks):
    captions = read_captions(squares)
    caches = [FeatureCache(rank=rank, world_size=ranks) for rank in range(ranks)]
    parts = [share(model, captions, "test", ["de", "fr"], cache) for cache in caches]
    for tower, encode in (("student", model.encode_text), ("teacher", model.encode_teacher_text)):
        own = [part[tower] for part in parts if tower in part]
        texts = [text for given, *_ in own for text in given]
        wanted = captions.texts[captions.select("test", ["de", "fr"] if tower == "student" else ["en"])]
        assert sorted(texts) == sorted(set(wanted.tolist()))
        assert max(len(given) for given, *_ in own) - len(texts) // ranks <= 1
        np.testing.assert_allclose(np.concatenate([found for _, found, _ in own]), encode(texts).numpy(), atol=1e-6)
    whole = evaluate(model, captions, "test", ["de", "fr"])
    found = evaluate(model, captions, "test", ["de", "fr"], parts=parts)
    assert list(found) == list(whole)
    for name, result in found.items():
        np.testing.assert_allclose(result.t2i_Q, whole[name].t2i_Q, atol=1)  # float rounding may swap neighbours
        np.testing.assert_array_equal(result.groups_Q, whole[name].groups_Q)
    parts[0]["image"][2][0] = True  # unreadable
    assert evaluate(model, captions, "test", ["de", "fr"], parts=parts)["de"].gallery == whole["de"].gallery - 1


@pytest.mark.parametrize("languages", [["fr"], ["de", "fr"]])
def test_only_wanted_languages_are_scored_with_the_teacher(model, squares, languages):
    assert list(evaluate(model, read_captions(squares), "valid", languages)) == ["teacher", *languages]
    assert list(evaluate(model, read_captions(squares), "valid", languages, teacher_language=None)) == languages


def test_a_language_or_split_without_captions_is_refused(model, squares):
    with pytest.raises(DataError, match="no valid captions in ja"):
        evaluate(model, read_captions(squares), "valid", ["ja"])
    with pytest.raises(DataError, match="no captions in split 'dev'"):
        evaluate(model, read_captions(squares), "dev")


def without(captions: Captions, language: str, images: Collection[int]) -> Captions:
    """The same captions without those of some pictures in a language."""
    kept = ~(np.isin(captions.images, list(images)) & captions.languages.isin([language]))
    columns = {name: getattr(captions, name).take(kept) for name in ("languages", "splits", "texts")}
    return replace(captions, images=captions.images[kept], **columns)


def test_the_gallery_is_the_split_whatever_languages_are_asked_for(model, squares):
    whole = read_captions(squares)
    half = whole.gallery("test")[::2]
    captions = without(whole, "de", half)
    alone = evaluate(model, captions, "test", ["de"])
    together = evaluate(model, captions, "test", ["en", "de", "fr"])
    for results in (alone, together):
        assert {name: found.gallery for name, found in results.items()} == dict.fromkeys(results, 12)
        assert (results["de"].captions, results["teacher"].captions) == (6, 12)
    for name in ("de", "teacher"):
        assert alone[name].t2i_Q.tolist() == together[name].t2i_Q.tolist()
        assert alone[name].i2t_G.tolist() == together[name].i2t_G.tolist()
    seen = embedded(model, captions, "test", ["de"])
    assert seen.images_G.tolist() == whole.gallery("test").tolist()
    assert sorted(captions.images[seen.rows_Q]) == sorted(set(whole.gallery("test")) - set(half))


def test_pictures_without_any_caption_are_in_the_gallery_of_their_split(model, squares):
    whole = read_captions(squares)
    bare = whole.gallery("test")[:3]
    captions = whole
    for language in ("en", "de", "fr"):
        captions = without(captions, language, bare)
    assert evaluate(model, captions, "test", ["de"])["de"].gallery == 9  # it is not known where the others belong
    captions = replace(captions, uncaptioned={"test": bare})
    found = evaluate(model, captions, "test", ["de"])
    assert (found["de"].gallery, found["de"].captions, len(found["de"].i2t_G)) == (12, 9, 9)


def test_by_protocol_language_the_gallery_is_what_has_a_caption_in_it(model, squares):
    captions = without(read_captions(squares), "de", read_captions(squares).gallery("test")[::2])
    for languages in (["de"], ["de", "fr"]):
        found = evaluate(model, captions, "test", languages, protocol="language")
        sizes = {"teacher": 12, "de": 6, "fr": 12}
        assert {name: result.gallery for name, result in found.items()} == {n: sizes[n] for n in found}
    german = captions.languages.isin(["de"]) & captions.splits.isin(["test"])
    expected = evaluate(model, replace(captions, splits=Labels(german.astype(int), ["", "german"])), "german")
    assert found["de"].scores() == expected["de"].scores()


def test_the_score_while_training_has_the_whole_gallery(model, squares, tmp_path):
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "data")))
    table = tmp_path / "data" / "captions.tsv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    german = [line for line in lines if "\tde\tvalid\t" in line]
    table.write_text("".join(line for line in lines if line not in german[::2]), encoding="utf-8")
    tree = tiny.recipe(tmp_path / "data")
    values = []
    for languages in (["de"], ["de", "fr"]):
        tree["evaluation"]["languages"] = languages
        opened = VALIDATION.open(parse(tree, Recipe, "tiny"), [])
        scored = opened.score(model, FeatureCache(), None)
        values.append((scored["de_t2i_r1"], scored["teacher_t2i_r1"]))
        assert opened.data == f"valid of {tmp_path / 'data'} (12 pictures)"
    assert values[0] == values[1]


def test_log_values_are_means_over_languages_without_the_teacher(model, squares):
    results = evaluate(model, read_captions(squares), "valid")
    flat = log_values(results)
    students = [results[language].scores()["t2i_r5"] for language in ("en", "de", "fr")]
    assert flat["mean_t2i_r5"] == pytest.approx(np.mean(students))
    assert flat["teacher_t2i_r5"] == results["teacher"].scores()["t2i_r5"]
    assert flat["de_t2i_r1"] == results["de"].scores()["t2i_r1"]


def test_a_model_is_scored_by_the_protocol_that_is_asked_for(model, squares):
    captions = read_captions(squares)
    found = evaluate(model, captions, "valid", ["de"], protocol="xtd")
    assert {result.protocol for result in found.values()} == {"xtd"}
    any_caption = evaluate(model, captions, "valid", ["de"])  # one caption a picture: the same figures
    assert found["de"].scores() == any_caption["de"].scores()
    assert found["de"].captions == found["de"].gallery == 12
    several = replace(captions, languages=Labels(np.zeros(len(captions.texts), int), ["en"]))
    with pytest.raises(DataError, match=r"valid, en: protocol xtd takes one caption a picture"):
        evaluate(model, several, "valid", ["en"], protocol="xtd")


def test_non_finite_embeddings_are_counted_by_tower_and_count_as_misses(model, squares):
    broken, logged = deepcopy(model), list[str]()
    with torch.no_grad():
        broken.projector.head[-1].weight.fill_(torch.inf)
    results = evaluate(broken, read_captions(squares), "valid", ["en", "fr"], cache=FeatureCache(log=logged.append))
    assert "student text: 24 of 24 embeddings are non-finite (NaN or inf); they count as misses" in logged
    assert all(results[language].scores()["mean_recall"] == 0 for language in ("en", "fr"))
    assert not any(line.startswith(("image:", "teacher")) for line in logged)
