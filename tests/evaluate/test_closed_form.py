"""The baseline `closed-form`: ridge regression in place of the projector, and data that it cannot be fitted on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.columns import Labels
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.evaluate import closed_form
from mclip_kit.evaluate.baselines import baseline
from mclip_kit.evaluate.checks import check_closed_form
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.closed_form import LAMBDAS
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import build_model
from tests import tiny

TEXTS = ["a red square", "Quadrat"]


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    model = build_model(parse(tiny.recipe(squares), Recipe, "tiny")).eval()
    model.trained_languages = ["de", "en"]
    return model


@pytest.fixture
def captions(squares: Path) -> Captions:
    return read_captions(squares)


def states(model: MultilingualClip, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        ids_BT, mask_BT = model.encoder.pad(model.student_tokens(texts))
        return model.projector.pool(model.encoder(ids_BT, mask_BT), mask_BT).double().numpy()


def slow(model: MultilingualClip, captions: Captions, strength: float) -> np.ndarray:
    """Embeddings of TEXTS: NumPy's least squares with the penalty as rows of their own."""
    english = {}
    for row in captions.select("train", ["en"]).tolist():
        english.setdefault(int(captions.images[row]), str(captions.texts[row]))
    rows = [row for row in captions.select("train", ["de", "en"]).tolist() if int(captions.images[row]) in english]
    x_NH = states(model, [str(captions.texts[row]) for row in rows])
    y_ND = model.encode_teacher_text([english[int(captions.images[row])] for row in rows]).double().numpy()
    centred_NH, width = x_NH - x_NH.mean(0), x_NH.shape[1]
    penalty = np.sqrt(len(rows) * strength * x_NH.var(0).mean()) * np.eye(width)
    targets = np.concatenate([y_ND - y_ND.mean(0), np.zeros((width, y_ND.shape[1]))])
    weights_HD = np.linalg.lstsq(np.concatenate([centred_NH, penalty]), targets, rcond=None)[0]
    found = (states(model, TEXTS) - x_NH.mean(0)) @ weights_HD + y_ND.mean(0)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_it_is_the_ridge_map_with_the_lambda_that_is_best_on_validation(model, captions):
    projector, lines, cache = model.projector, list[str](), FeatureCache()
    cache.log = lines.append
    student = closed_form.closed_form(model, cache, captions)
    assert model.projector is projector  # the model stays as it is
    assert student.encoder is model.encoder
    rows = len(captions.select("train", ["de", "en"]))
    (line,) = lines
    assert line.startswith(f"closed-form: ridge regression on {rows} train captions in de, en; lambda ")
    chosen, listed = line.split("lambda ")[1].split(" (")[0], line.split("by lambda: ")[1].rstrip(")").split(", ")
    by_lambda = {name: float(score) for name, score in (pair.split() for pair in listed)}
    assert list(by_lambda) == [f"{strength:g}" for strength in LAMBDAS]
    assert by_lambda[chosen] == max(by_lambda.values())
    found = evaluate(student, captions, "valid", ["de", "en"], None)
    mean = np.mean([result.scores()["t2i_r1"] for result in found.values()])
    assert mean == pytest.approx(by_lambda[chosen], abs=0.06)
    wanted = slow(model, captions, float(chosen))
    np.testing.assert_allclose(student.encode_text(TEXTS).numpy(), wanted, atol=2e-4)


def test_as_a_baseline_it_ranks_the_languages_that_are_asked_for(model, captions):
    found = baseline("closed-form", captions, "test", ["fr", "de"])(model, FeatureCache(), "m")
    own = evaluate(closed_form.closed_form(model, FeatureCache(), captions), captions, "test", ["fr", "de"], None)
    cache, lines = FeatureCache(), list[str]()
    cache.log = lines.append
    baseline("closed-form", captions, "test", ["de"])(model, cache, "runs/mine/model")
    assert lines[0].startswith("closed-form of runs/mine/model: ridge regression on ")
    assert {name: result.t2i_Q.tolist() for name, result in found.items()} == {
        name: result.t2i_Q.tolist() for name, result in own.items()
    }


def test_many_captions_are_thinned_out(model, captions, monkeypatch):
    monkeypatch.setattr(closed_form, "CAPTIONS", 10)
    cache, lines = FeatureCache(), list[str]()
    cache.log = lines.append
    closed_form.closed_form(model, cache, captions)
    assert "ridge regression on 10 of 144 train captions" in lines[0]


def without(captions: Captions, split: str, language: str = "") -> Captions:
    """Captions with the rows of a split, or of a language in it, in another one."""
    splits = np.array(captions.splits.tolist(), object)
    gone = captions.splits.isin([split]) & (captions.languages.isin([language]) if language else True)
    return replace(captions, splits=Labels.of(np.where(gone, "other", splits).tolist()))


def test_data_without_what_it_needs_is_refused_before_anything_is_computed(model, captions):
    with pytest.raises(RecipeError, match="--baseline closed-form: it is fitted on train and valid; give another"):
        baseline("closed-form", captions, "valid", "all")
    for data, message in {
        "valid": r"no captions in split 'valid'; there are .*; leave it out",
        "train": r"no captions in split 'train'; there are .*; leave it out",
    }.items():
        with pytest.raises(RecipeError, match=message):
            baseline("closed-form", without(captions, data), "test", "all")
    with pytest.raises(RecipeError, match="no train captions in en; there are de, fr"):
        baseline("closed-form", without(captions, "train", "en"), "test", "all")


def test_pictures_for_lambda_that_are_not_there_are_told_before_anything_is_computed(captions, tmp_path):
    files = [tmp_path / f"{image}.png" for image in range(len(captions.names))]
    for image in captions.gallery("test"):
        files[int(image)].touch()
    there = replace(captions, pixels=None, files=files)
    with pytest.raises(RecipeError, match=r"--baseline closed-form: .*none of its valid pictures is there"):
        check_closed_form(there, "test")


def test_captions_of_no_picture_with_an_english_one_are_named(model, captions):
    german = captions.select("train", ["de"])
    images = captions.images.copy()
    images[german] = captions.images[captions.select("test", ["de"])[0]]
    only = replace(captions, images=images)
    with pytest.raises(DataError, match="no train caption in de is of a picture with one in en"):
        closed_form._moments(model, FeatureCache(), only, ["de"])
