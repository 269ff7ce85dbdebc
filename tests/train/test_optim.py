"""What is trained, which weights decay, and the learning rate of every step."""

import math
from pathlib import Path

import pytest
import torch
from timm.optim import Lamb
from torch import nn

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import Edge
from mclip_kit.config.yaml import parse
from mclip_kit.errors import RecipeError
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.triangle_loss import Triangle
from mclip_kit.train.build import build_model
from mclip_kit.train.optim import build_optimizer, learning_rate, trainable
from tests import tiny

EDGE = "image-student_text"


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    return build_model(parse({**tiny.recipe(squares), "clip_projector": "linear"}, Recipe, "tiny"))


def names(model: nn.Module, *starts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


@pytest.mark.parametrize("tower", ["image", "teacher_text", "encoder", "projector", "clip_projector"])
def test_a_tower_is_all_of_its_parameters_and_no_others(model, tower):
    assert trainable(model, [tower]) == names(model, f"{tower}.")
    assert trainable(model, [tower])


def test_student_is_encoder_and_projector(model):
    assert trainable(model, ["student"]) == names(model, "encoder.", "projector.")


def test_patterns_add_up(model):
    assert trainable(model, ["projector", "image"]) == names(model, "projector.", "image.")


def test_a_star_is_everything(model):
    assert trainable(model, ["*"]) == names(model, "")


@pytest.mark.parametrize(
    ("pattern", "start"),
    [
        ("encoder.model.embeddings", "encoder.model.embeddings."),
        ("encoder.model.encoder.layer.0.attention.*", "encoder.model.encoder.layer.0.attention."),
        ("*.word_embeddings.*", "encoder.model.embeddings.word_embeddings."),
        ("projector.head.[12]", ("projector.head.1.", "projector.head.2.")),
    ],
)
def test_globs_of_parameter_names(model, pattern, start):
    assert trainable(model, [pattern]) == names(model, *([start] if isinstance(start, str) else start))


def test_one_parameter_by_its_name(model):
    assert trainable(model, ["clip_projector.weight"]) == {"clip_projector.weight"}


@pytest.mark.parametrize("pattern", ["encodr", "encoder.layer.0", "Encoder", "proj", ""])
def test_a_pattern_that_matches_nothing_is_named_even_next_to_others(model, pattern):
    with pytest.raises(RecipeError, match=f"train: '{pattern}' matches no parameter of the model"):
        trainable(model, ["projector", pattern])


@pytest.fixture
def triangle(model: MultilingualClip) -> Triangle:
    """The projectors are trained, with a learned temperature."""
    train = trainable(model, ["projector", "clip_projector"])
    return Triangle(model, {EDGE: Edge(loss="contrastive", learned=True)}, train)


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_only_matrices_decay(triangle, kind):
    optimizer = build_optimizer(triangle, kind, 1e-3, 0.1, (0.9, 0.98), 1e-6)
    number = {id(parameter): name for name, parameter in triangle.named_parameters()}
    decayed = {number[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed == {
        "model.projector.head.0.weight": 0.0,  # of the layer norm
        "model.projector.head.0.bias": 0.0,
        "model.projector.head.1.weight": 0.1,
        "model.projector.head.1.bias": 0.0,
        "model.projector.head.2.weight": 0.1,
        "model.clip_projector.weight": 0.1,
        f"scales.{EDGE}": 0.0,
    }


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_the_optimizer_has_the_recipes_values(triangle, kind):
    for group in build_optimizer(triangle, kind, 1e-3, 0.1, (0.8, 0.95), 1e-5).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.8, 0.95), 1e-5)


def test_a_kind_of_parameter_that_is_not_trained_has_no_group(model):
    triangle = Triangle(model, {EDGE: Edge(loss="contrastive")}, {"clip_projector.weight"})
    (group,) = build_optimizer(triangle, "adamw", 1e-3, 0.1, (0.9, 0.999), 1e-8).param_groups
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize(("kind", "expected"), [("adamw", torch.optim.AdamW), ("lamb", Lamb)])
def test_optimizers_are_torchs_and_timms(triangle, kind, expected):
    assert type(build_optimizer(triangle, kind, 1e-3, 0.1, (0.9, 0.999), 1e-8)) is expected


def test_lamb_takes_the_papers_first_step_without_clipping_of_its_own():
    torch.manual_seed(0)
    module = nn.Linear(3, 2, bias=False)
    before, gradient = module.weight.detach().clone(), 50 * torch.randn(2, 3)
    module.weight.grad = gradient.clone()
    optimizer = build_optimizer(module, "lamb", 0.01, 0.1, (0.9, 0.999), 1e-6)
    optimizer.step()
    update = gradient / (gradient.abs() + 1e-6) + 0.1 * before  # moments with their bias corrected are g and g^2
    expected = before - 0.01 * before.norm() / update.norm() * update
    torch.testing.assert_close(module.weight.detach(), expected)
    assert optimizer.defaults["max_grad_norm"] is None


def test_adamw_takes_the_papers_first_step():
    torch.manual_seed(0)
    module = nn.Linear(3, 2, bias=False)
    before, gradient = module.weight.detach().clone(), torch.randn(2, 3)
    module.weight.grad = gradient.clone()
    build_optimizer(module, "adamw", 0.01, 0.1, (0.9, 0.999), 1e-8).step()
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.01 * 0.1) - 0.01 * gradient.sign())


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_the_warm_up_is_linear_and_ends_at_the_peak(schedule):
    rate = learning_rate(2.0, schedule, 4, 100)
    assert [rate(step) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_without_a_warm_up_the_first_step_has_the_peak(schedule):
    assert learning_rate(2.0, schedule, 0, 100)(0) == pytest.approx(2.0)


def test_cosine_is_half_in_the_middle_and_nearly_zero_at_the_end():
    rate = learning_rate(2.0, "cosine", 20, 120)
    assert [rate(step) for step in (45, 70, 95)] == pytest.approx([1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)])
    assert 0 < rate(119) < 1e-3
    assert rate(120) == pytest.approx(0, abs=1e-12)


def test_inverse_sqrt_falls_with_the_root_of_the_step():
    rate = learning_rate(2.0, "inverse_sqrt", 500, 10_000)
    assert [rate(step) for step in (500, 2000, 4500, 8000)] == pytest.approx([2.0, 1.0, 2 / 3, 0.5])


def test_constant_stays():
    rate = learning_rate(2.0, "constant", 2, 100)
    assert {rate(step) for step in range(2, 100)} == {2.0}


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_no_rate_is_above_the_peak_or_below_zero(schedule):
    for warmup in (0, 1, 7, 200):
        rate = learning_rate(1e-3, schedule, warmup, 100)
        assert all(0 <= rate(step) <= 1e-3 for step in range(100))


def test_lora_names_the_adapters():
    model = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"lora_A": torch.nn.Linear(2, 2)})})
    assert trainable(model, ["lora"]) == {"encoder.lora_A.weight", "encoder.lora_A.bias"}
