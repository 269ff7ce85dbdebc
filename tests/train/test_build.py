"""Settings of a stage that do not fit the towers of the recipe are refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.errors import RecipeError
from mclip_kit.train.build import build_model
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
