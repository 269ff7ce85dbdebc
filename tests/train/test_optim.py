"""What is trained, which weights decay, and the learning rate of every step."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


Arrays = dict[str, np.ndarray]


def task(seed: int = 0) -> tuple[nn.Module, Callable[[Arrays], Arrays]]:
    """A small network with matrices, biases and a scale, and the gradients of a loss at some of its weights.

    In the first steps the gradient norm is above 2 and above 1, later below; some gradients are near 1e-8.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    net.register_parameter("scale", nn.Parameter(torch.tensor(2.6, dtype=torch.float64)))
    inputs, target = torch.randn(32, 6).double(), 3 * torch.randn(32, 3).double()

    def gradients(weights: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(np.asarray(w)).requires_grad_() for name, w in weights.items()}
        found = torch.func.functional_call(net, tensors, (inputs,)) * tensors["scale"].exp() / 10
        loss = (found - target).square().mean() + 1e-9 * sum(t.sum() for t in tensors.values())
        return {n: g.numpy() for n, g in zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True)}

    return net, gradients


def clipped(gradients: Arrays, norm: float) -> Arrays:
    """fairseq's clip_grad_norm_."""
    whole = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    return {name: g * min(1.0, norm / (whole + 1e-6)) for name, g in gradients.items()}


def fairseq_rate(update: int, peak: float, first: float, warmup: int) -> float:
    """fairseq's inverse_sqrt schedule at an update, counted from 0."""
    if update < warmup:
        return first + update * (peak - first) / warmup
    return peak * warmup**0.5 * update**-0.5


def apex_lamb(weights: Arrays, gradients: Arrays, state: dict[str, Arrays], t: int, lr: float, decay: float) -> Arrays:
    """apex's FusedLAMB (csrc/multi_tensor_lamb.cu, stages 1 and 2; mode 1, bias correction, gradient averaging).

    Args:
        t: number of the step, from 1.
    """
    b1, b2, eps = 0.9, 0.999, 1e-8
    whole = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    clip = whole if whole > 1.0 else 1.0
    new = {}
    for name, p in weights.items():
        g = gradients[name] / clip
        m = state["m"][name] = b1 * state["m"].get(name, 0.0) + (1 - b1) * g
        v = state["v"][name] = b2 * state["v"].get(name, 0.0) + (1 - b2) * g * g
        update = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * p
        p_norm, u_norm = np.sqrt((p**2).sum()), np.sqrt((update**2).sum())
        ratio = lr * (p_norm / u_norm) if p_norm != 0 and u_norm != 0 else lr
        new[name] = p - ratio * update
    return new


def fairseq_adam(
    weights: Arrays, gradients: Arrays, state: dict[str, Arrays], t: int, lr: float, decay: float
) -> Arrays:
    """fairseq 0.12's Adam (fairseq/optim/adam.py)."""
    b1, b2, eps = 0.9, 0.98, 1e-8
    new = {}
    for name, p in weights.items():
        g = gradients[name]
        m = state["m"][name] = b1 * state["m"].get(name, 0.0) + (1 - b1) * g
        v = state["v"][name] = b2 * state["v"].get(name, 0.0) + (1 - b2) * g * g
        step = lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        new[name] = p - decay * lr * p - step * m / (np.sqrt(v) + eps)
    return new


OFFICIAL = {"lamb_apex": (apex_lamb, (0.9, 0.999)), "adam_fairseq": (fairseq_adam, (0.9, 0.98))}


def both(kind: str, official: str, steps: int = 400) -> list[float]:
    """How far the weights of an optimiser are from the official formula's after each step, as a share of their norm."""
    net, gradients = task()
    formula, betas = OFFICIAL[official]
    reference = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    state: dict[str, Arrays] = {"m": {}, "v": {}}
    optimizer = build_optimizer(net, kind, 1e-2, 0.01, betas, 1e-8)
    rate = learning_rate(1e-2, "inverse_sqrt", 50, steps, 1e-7)
    far, size = [], sum(float((w**2).sum()) for w in reference.values())
    for step in range(steps):
        assert rate(step) == pytest.approx(fairseq_rate(step, 1e-2, 1e-7, 50))
        taken = gradients(reference)  # both get the same: a network amplifies the last bit of a double over 400 steps
        reference = formula(reference, clipped(taken, 2.0), state, step + 1, fairseq_rate(step, 1e-2, 1e-7, 50), 0.01)
        for name, p in net.named_parameters():
            p.grad = torch.from_numpy(np.asarray(taken[name])).clone()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["scale"]
        optimizer.step()
        apart = {name: p.detach().numpy() - reference[name] for name, p in net.named_parameters()}
        far.append((sum(float((w**2).sum()) for w in apart.values()) / size) ** 0.5)
    return far


@pytest.mark.parametrize("kind", OFFICIAL)
def test_the_official_formula_is_followed_over_400_steps(kind: str) -> None:
    assert max(both(kind, kind)) < 1e-5


@pytest.mark.parametrize(("kind", "official"), [("lamb", "lamb_apex"), ("adamw", "adam_fairseq")])
def test_our_own_optimisers_differ_from_the_official_ones(kind: str, official: str) -> None:
    assert max(both(kind, official)) > 1e-3


def test_the_moments_of_the_official_adam_resume() -> None:
    """Its epsilon depends on the step."""
    net, _ = task()
    optimizer = build_optimizer(net, "adam_fairseq", 1e-2, 0.01, (0.9, 0.98), 1e-8)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(3):
        optimizer.step()
    again = build_optimizer(net, "adam_fairseq", 1e-2, 0.01, (0.9, 0.98), 1e-8)
    again.load_state_dict(optimizer.state_dict())
    again.step()
    assert again.param_groups[0]["eps"] == pytest.approx(1e-8 / math.sqrt(1 - 0.98**4))


@pytest.mark.parametrize("schedule", ["cosine", "inverse_sqrt", "constant"])
def test_a_warm_up_may_start_at_a_rate_of_its_own(schedule):
    rate = learning_rate(2.0, schedule, 4, 100, 0.4)
    assert [rate(step) for step in range(5)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])


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
