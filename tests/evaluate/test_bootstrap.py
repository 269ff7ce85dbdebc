"""Paired bootstrap intervals: against slow loops, against scipy, and whether they cover the truth at 95%."""

import numpy as np
import pytest

from mclip_kit.errors import DataError
from mclip_kit.evaluate import bootstrap
from mclip_kit.evaluate.bootstrap import compare, intervals, means_of, resampled_means
from mclip_kit.evaluate.retrieval import Retrieval


def retrieval(t2i_Q, i2t_G, groups_Q, groups_G) -> Retrieval:
    t2i_Q, i2t_G = np.asarray(t2i_Q), np.asarray(i2t_G)
    strata = [np.full(len(ranks), "all") for ranks in (t2i_Q, i2t_G)]
    groups = {"groups_Q": np.asarray(groups_Q), "groups_G": np.asarray(groups_G)}
    return Retrieval(t2i_Q, i2t_G, *strata, len(i2t_G), **groups)


def luck(pictures: int, captions: int, seed: int, shift: float = 0.0) -> Retrieval:
    """Ranks of a tower that finds about half of its pictures; a picture's captions share its difficulty."""
    draw = np.random.default_rng(seed)
    hard_G = np.random.default_rng(7).uniform(1, 20, pictures)
    groups_Q = np.repeat(np.arange(pictures), captions)
    ranks_Q = np.maximum(1, draw.normal(hard_G[groups_Q] - shift, 4).round())
    ranks_G = np.maximum(1, draw.normal(hard_G - shift, 4).round())
    return retrieval(ranks_Q, ranks_G, groups_Q, np.arange(pictures))


def slow_means(values, pictures, resamples, seed):
    """Each resample's mean, by going through the drawn pictures one by one."""
    known = sorted(set(pictures))
    drawn = np.random.default_rng(seed).integers(len(known), size=(resamples, len(known)))
    out = []
    for resample in drawn:
        taken = [value for place in resample for value, of in zip(values, pictures, strict=True) if of == known[place]]
        out.append(sum(taken) / len(taken))
    return out


def test_resamples_are_those_of_slow_loops(monkeypatch):
    draw = np.random.default_rng(0)
    values_Q, pictures_Q = draw.normal(size=40), draw.integers(9, size=40) * 100
    pictures_Q[:9] = np.arange(9) * 100
    expected = slow_means(values_Q, pictures_Q, 25, seed=3)
    np.testing.assert_allclose(resampled_means([(values_Q, pictures_Q)], 25, 3)[:, 0], expected)
    monkeypatch.setattr(bootstrap, "CELLS", 50)  # five resamples at once
    np.testing.assert_allclose(resampled_means([(values_Q, pictures_Q)], 25, 3)[:, 0], expected)


def test_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra `dev` only")
    ours, theirs = luck(120, 1, 1, shift=2), luck(120, 1, 2)
    found = compare(ours={"de": ours}, theirs={"de": theirs}, resamples=20_000)
    differences = (ours.t2i_Q <= 1).astype(float) - (theirs.t2i_Q <= 1)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (found[0].language, found[0].metric) == ("de", "image_retrieval_recall@1")
    assert found[0].difference == pytest.approx(differences.mean())
    assert (found[0].low, found[0].high) == pytest.approx(tuple(expected), abs=0.01)


def test_intervals_of_a_score_are_those_of_scipy_and_each_group_has_its_own():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra `dev` only")
    results = {"de": luck(120, 1, 1), "fr": luck(120, 1, 2, shift=3), "teacher": luck(120, 1, 3)}
    found = {(one.languages, one.metric): one for one in intervals(results, [["de"], ["de", "fr"], ["teacher"], []])}
    assert len(found) == 3 * 3
    right = [(results[language].t2i_Q <= 1).astype(float) for language in ("de", "fr")]
    for languages, values in ((("de",), right[0]), (("de", "fr"), (right[0] + right[1]) / 2)):
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
        )
        one = found[languages, "image_retrieval_recall@1"]
        assert (one.low, one.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.015)


def test_one_picture_has_no_interval():
    assert intervals({"de": retrieval([1, 2], [1], [4, 4], [4])}, [["de"]]) == []


def test_intervals_hold_the_truth_and_those_of_single_captions_do_not():
    """200 draws of 60 pictures, each with five captions that are always right or wrong together."""
    held, held_alone = 0, 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        values_Q = np.repeat(draw.choice([-1.0, 0.0, 1.0], 60, p=[0.2, 0.5, 0.3]), 5)  # 0.1 in truth
        clustered, alone = np.repeat(np.arange(60), 5), np.arange(300)
        low_high = [np.percentile(resampled_means([(values_Q, of)], 400, 1), [2.5, 97.5]) for of in (clustered, alone)]
        held += low_high[0][0] <= 0.1 <= low_high[0][1]
        held_alone += low_high[1][0] <= 0.1 <= low_high[1][1]
    assert 0.9 < held / 200 < 0.985
    assert held_alone / 200 < 0.75


def test_what_is_compared_is_r1_both_ways_and_mean_recall():
    ours, theirs = luck(50, 3, 1, shift=3), luck(50, 3, 2)
    found = {item.metric: item for item in compare({"de": ours}, {"de": theirs})}
    columns = {"image_retrieval_recall@1": "t2i_r1", "text_retrieval_recall@1": "i2t_r1", "mean_recall": "mean_recall"}
    assert list(found) == list(columns)
    for metric, column in columns.items():
        item = found[metric]
        assert item.difference * 100 == pytest.approx(ours.scores()[column] - theirs.scores()[column])
        assert item.low < item.difference < item.high


def test_the_mean_over_languages_shares_their_draws():
    ours, theirs = luck(50, 2, 1, shift=3), luck(50, 2, 2)
    single = compare({"de": ours}, {"de": theirs})
    double = compare({"de": ours, "fr": ours, "teacher": theirs}, {"fr": theirs, "de": theirs, "teacher": theirs})
    assert [item.language for item in double] == ["de"] * 3 + ["fr"] * 3 + ["mean"] * 3
    for item, other in zip(single, double[6:], strict=True):  # two languages that are the same prove no more than one
        assert (item.difference, item.low, item.high) == pytest.approx((other.difference, other.low, other.high))


def test_a_tower_is_no_better_than_itself_and_seeds_repeat():
    ours, theirs = luck(30, 2, 1, shift=3), luck(30, 2, 2)
    assert all((item.difference, item.low, item.high) == (0, 0, 0) for item in compare({"de": ours}, {"de": ours}))
    assert compare({"de": ours}, {"de": theirs}) == compare({"de": ours}, {"de": theirs})
    assert compare({"de": ours}, {"de": theirs}) != compare({"de": ours}, {"de": theirs}, seed=2)


def test_pictures_that_look_the_same_are_drawn_as_one():
    alone = resampled_means([(np.array([1.0, -1.0, 0.0]), np.array([0, 1, 2]))], 500, 1)
    tied = resampled_means([(np.array([1.0, -1.0, 0.0]), np.array([0, 0, 2]))], 500, 1)
    assert set(alone[:, 0].tolist()) > {-1.0, 1.0}
    assert set(tied[:, 0].tolist()) == {0.0}


def test_one_picture_gives_no_interval():
    only = retrieval([1, 2], [1], [0, 0], [0])
    with pytest.raises(DataError, match="at least two pictures; 1 was scored"):
        compare({"de": only}, {"de": only})


def test_a_language_that_a_resample_misses_is_left_out_of_it():
    rare = (np.array([1.0]), np.array([0]))
    common = (np.zeros(3), np.array([0, 1, 2]))
    found_RM = resampled_means([rare, common], 200, 1)
    assert set(found_RM[~np.isnan(found_RM[:, 0]), 0]) == {1.0}
    assert np.isnan(found_RM[:, 0]).any()
    assert not np.isnan(found_RM[:, 1]).any()
    assert means_of([rare, common]).tolist() == [1.0, 0.0]
