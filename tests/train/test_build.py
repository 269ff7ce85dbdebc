"""Settings of a stage that do not fit the towers of the recipe are refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.models.multilingual_clip import load
from mclip_kit.train.build import build_model, open_data
from tests import tiny

NOISE = {"projector": {"kind": "linear", "noise": 0.5}}
RESNET = tiny.TEACHER | {"vision_cfg": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1]}}


def build(data: Path, index: int, tree: dict[str, Any], **stage: Any) -> None:
    whole = tiny.recipe(data) | tree
    whole["stages"][index] |= stage
    build_model(parse(whole, Recipe, "tiny"))


@pytest.mark.parametrize("index", [1, 2])
def test_parts_of_a_batch_have_no_statistics_of_the_whole(index: int, squares: Path) -> None:
    with pytest.raises(RecipeError, match=f"stages.{index}.micro_batch: the stage trains projector, where projector.n"):
        build(squares, index, NOISE, micro_batch=8)


def test_neither_have_they_in_a_convolutional_tower(squares: Path) -> None:
    teacher = {"teacher": {"model": RESNET, "weights": "train"}}
    with pytest.raises(RecipeError, match=r"stages.0.micro_batch: the stage trains image, where its BatchNorm"):
        build(squares, 0, teacher, micro_batch=8)
    build(squares, 2, teacher, micro_batch=8)  # frozen, it is in eval mode


def test_a_frozen_projector_with_noise_may_be_computed_in_parts(squares: Path) -> None:
    build(squares, 2, NOISE, micro_batch=8, train=["encoder"])


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (1, {"split": "dev"}, r"bitext: no sentences in split 'dev'; there are test, train, valid"),
        (2, {"split": "dev"}, r"no captions in split 'dev'; there are test, train, valid"),
        (2, {"split": {"de": "train", "fr": "dev"}}, r"no captions in split 'dev'; there are test, train, valid"),
        (2, {"languages": ["de", "ja"]}, r"no train captions in ja; there are de, en, fr"),
    ],
)
def test_rows_that_are_not_there_are_told_before_any_weight_is_loaded(
    index: int, changes: dict[str, Any], message: str, squares: Path
) -> None:
    tree = tiny.recipe(squares)
    tree["stages"][index] |= changes
    with pytest.raises(DataError, match=message):
        open_data(parse(tree, Recipe, "tiny"))


def test_of_several_corpora_one_may_lack_a_split(squares: Path, tmp_path: Path) -> None:
    shares = {str(squares / "bitext"): 1, str(tmp_path): 1}
    (tmp_path / "dev.en-it.en.idx").touch()
    tree = tiny.recipe(squares) | {"data": {"captions": str(squares), "bitext": shares}}
    assert open_data(parse(tree, Recipe, "tiny")) is not None
    tree["stages"][1]["split"] = "none"
    with pytest.raises(DataError, match=r"no sentences in split 'none'; there are dev, test, train, valid"):
        open_data(parse(tree, Recipe, "tiny"))


def with_dims(squares: Path, *each: list[Any]) -> Any:
    """The model of the tiny recipe whose last stages have these `dims`."""
    tree = tiny.recipe(squares)
    for stage, dims in zip(tree["stages"][1:], each, strict=False):
        (edge,) = stage["edges"].values()
        edge["dims"] = dims
    return build_model(parse(tree, Recipe, "tiny"))


def test_a_model_knows_the_widths_of_the_students_last_stage(squares: Path, tmp_path: Path) -> None:
    assert with_dims(squares).dims == []
    assert with_dims(squares, [4, "full"]).dims == []  # the stage after it trains the whole alone
    model = with_dims(squares, [4, "full"], [8, "full", 2])
    assert model.dims == [2, 8]
    model.save(tmp_path / "model")
    assert load(tmp_path / "model", "cpu").dims == [2, 8]
    start = tiny.recipe(squares) | {"init_from": str(tmp_path / "model"), "teacher": None, "encoder": None}
    start |= {"projector": None, "stages": tiny.recipe(squares)["stages"][:1]}
    assert build_model(parse(start, Recipe, "tiny")).dims == [2, 8]  # the student is as it was


@pytest.mark.parametrize("width", [16, 17])
def test_a_width_that_is_not_below_the_embeddings_is_refused(width: int, squares: Path) -> None:
    said = rf"^stages\.2\.edges: dims: {width} is not below 16, the width of the embeddings; leave it out"
    with pytest.raises(RecipeError, match=said):
        with_dims(squares, [4, "full"], [width, "full"])
