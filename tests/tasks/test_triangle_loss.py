"""The losses on edges: what is frozen stays the same, only named edges are computed, features may be read."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit import losses
from mclip_kit.config.recipe import Cache, Recipe
from mclip_kit.config.stages import Edge, TriangleStage
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.datasets import rows_from_captions
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.losses import distillation
from mclip_kit.losses.sigmoid import sigmoid
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.triangle_batches import TriangleBatches
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch
from mclip_kit.train.build import build_model
from mclip_kit.train.optim import build_optimizer, trainable
from tests import tiny

IMAGE_STUDENT, TEACHER_STUDENT, IMAGE_TEACHER = "image-student_text", "teacher_text-student_text", "image-teacher_text"
CONTRASTIVE, MSE = Edge(loss="contrastive"), Edge(loss="mse")
TRIKD = {IMAGE_STUDENT: CONTRASTIVE, TEACHER_STUDENT: Edge(loss="contrastive", weight=0.1, temperature=0.376)}
ALL_EDGES = {IMAGE_TEACHER: CONTRASTIVE, IMAGE_STUDENT: CONTRASTIVE, TEACHER_STUDENT: MSE}
TOWERS = ("image", "teacher_text", "encoder", "projector", "clip_projector")
ROWS = np.array([3 * picture + language for picture in range(0, 72, 9) for language in range(3)])  # en de fr of eight


@pytest.fixture(scope="module")
def built(squares: Path) -> MultilingualClip:
    """Towers of the tiny recipe, with a trainable clip projector."""
    return build_model(parse({**tiny.recipe(squares), "clip_projector": "linear"}, Recipe, "tiny"))


@pytest.fixture
def model(built: MultilingualClip) -> Iterator[MultilingualClip]:
    """These towers, as they were built at every test's start."""
    before = {name: value.clone() for name, value in built.state_dict().items()}
    yield built.train()
    built.load_state_dict(before)
    built.zero_grad()


@pytest.fixture(scope="module")
def captions(squares: Path) -> Captions:
    return read_captions(squares)


def rows_of(captions: Captions, model: MultilingualClip, max_tokens: int | None = None) -> TriangleRows:
    return tiny.rows_of(
        rows_from_captions(captions, "train", "all", "en", lambda texts: model.student_tokens(texts, max_tokens))
    )


def batch_of(
    model: MultilingualClip,
    captions: Captions,
    *,
    live: set[str] = frozenset(),
    max_tokens: int | None = None,
    store: FeatureCache | None = None,
) -> TriangleBatch:
    """A batch for all edges; outputs of towers that are not live are read from the cache."""
    stage = TriangleStage.model_validate(
        {"name": "all", "train": ["projector"], "edges": ALL_EDGES, "data": "captions"}
        | {"lr": 1e-3, "epochs": 1, "batch_size": 24}
    )
    rows = rows_of(captions, model, max_tokens)
    towers = FrozenTowers(model, store or FeatureCache())
    return TriangleBatches(towers, rows, stage, live, Cache.model_validate({}), captions).batch(ROWS)


@pytest.fixture
def batch(model: MultilingualClip, captions: Captions) -> TriangleBatch:
    """Rows of which every third has a teacher text; all towers compute."""
    return batch_of(model, captions, live=set(TOWERS))


def triangle_of(model: MultilingualClip, edges: dict[str, Edge], train: list[str]) -> Triangle:
    return Triangle(model, edges, trainable(model, train))


def without(batch: TriangleBatch, *names: str) -> TriangleBatch:
    return TriangleBatch(**{f.name: None if f.name in names else getattr(batch, f.name) for f in fields(batch)})


def some_rows(batch: TriangleBatch, keep_B: Tensor) -> TriangleBatch:
    columns = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return TriangleBatch(**{name: None if column is None else column[keep_B] for name, column in columns.items()})


@pytest.mark.parametrize(
    "train", [["projector"], ["projector", "clip_projector"], ["student"], ["image", "teacher_text"]], ids="+".join
)
def test_frozen_towers_get_no_gradient_and_trained_ones_do(model, batch, train):
    triangle = triangle_of(model, ALL_EDGES, train)
    triangle(batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        trained = name.split(".")[0] in (*train, *(("encoder", "projector") if "student" in train else ()))
        assert parameter.requires_grad == trained, name
        if not trained:
            assert parameter.grad is None, name
    for tower in {name.split(".")[0] for name in trainable(model, train)}:
        gradients = [parameter.grad for parameter in model.get_submodule(tower).parameters()]
        assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_only_the_named_parameters_of_a_tower_are_trained(model, batch):
    triangle = triangle_of(model, TRIKD, ["encoder.model.encoder.layer.0.output.*"])
    triangle(batch)["loss"].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(trained) == 4
    assert all(name.startswith("encoder.model.encoder.layer.0.output.") for name in trained)


def test_frozen_towers_stay_in_eval_mode_when_the_triangle_trains(model):
    triangle = triangle_of(model, TRIKD, ["projector"]).train()
    modes = {tower: {part.training for part in model.get_submodule(tower).modules()} for tower in TOWERS}
    assert modes == {tower: {tower == "projector"} for tower in TOWERS}
    triangle.eval()
    assert not any(part.training for part in triangle.modules())


def test_frozen_towers_have_no_dropout_and_trained_ones_have(model, batch):
    def repeats(train: list[str]) -> bool:
        triangle = triangle_of(model, TRIKD, train).train()
        return torch.equal(triangle(batch)["loss"], triangle(batch)["loss"])

    assert repeats(["projector"])
    assert not repeats(["student"])


@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_frozen_weights_are_bit_identical_after_steps_with_weight_decay(model, batch, kind):
    triangle = triangle_of(model, TRIKD, ["projector", "clip_projector"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(triangle, kind, 1e-2, 0.5, (0.9, 0.999), 1e-8)
    for _ in range(3):
        optimizer.zero_grad()
        triangle(batch)["loss"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trainable(model, ["projector", "clip_projector"])


@pytest.mark.parametrize("name", list(ALL_EDGES))
def test_only_the_vertices_of_named_edges_are_computed(model, batch, name):
    inputs = {"image": "pixels_BCHW", "teacher_text": "teacher_ids_BT", "student_text": "ids_BT"}
    unneeded = next(vertex for vertex in inputs if vertex not in name.split("-"))
    triangle = triangle_of(model, {name: ALL_EDGES[name]}, ["clip_projector"]).eval()
    terms = triangle(without(batch, inputs[unneeded]))
    assert set(terms) == {name, "loss", "cosine", "matching"}
    torch.testing.assert_close(terms["loss"], triangle_of(model, ALL_EDGES, ["clip_projector"]).eval()(batch)[name])


def test_the_loss_is_the_weighted_sum_of_its_terms(model, batch):
    edges = {IMAGE_STUDENT: Edge(loss="contrastive", weight=2.0), TEACHER_STUDENT: Edge(loss="mse", weight=0.25)}
    terms = triangle_of(model, edges, ["projector"])(batch)
    assert set(terms) == {IMAGE_STUDENT, TEACHER_STUDENT, "loss", "cosine", "matching"}
    torch.testing.assert_close(terms["loss"], 2 * terms[IMAGE_STUDENT] + 0.25 * terms[TEACHER_STUDENT])


def test_terms_are_the_losses_of_the_embeddings(model, batch):
    triangle = triangle_of(model, ALL_EDGES, ["projector"]).eval()
    image, student = triangle.image(batch), triangle.student_text(batch)
    teacher, keep_B = triangle.teacher_text(batch), batch.has_teacher_B
    terms = triangle(batch)
    torch.testing.assert_close(terms[IMAGE_STUDENT], losses.contrastive(image, student, 1 / 0.07, batch.groups_B))
    torch.testing.assert_close(terms[TEACHER_STUDENT], losses.mse(student[keep_B], teacher[keep_B]))


def test_captions_of_one_picture_are_right_for_each_other_unless_pairs_are_asked_for(model, batch):
    groups = triangle_of(model, {IMAGE_STUDENT: CONTRASTIVE}, ["projector"]).eval()
    pairs = triangle_of(model, {IMAGE_STUDENT: Edge(loss="contrastive", positives="pair")}, ["projector"]).eval()
    torch.manual_seed(0)
    batch = TriangleBatch(
        **{**vars(batch), "image_BE": torch.randn(len(ROWS), 16), "pooled_BH": torch.randn(len(ROWS), 16)}
    )
    alone = TriangleBatch(**{**vars(batch), "groups_B": torch.arange(len(ROWS))})
    assert not torch.allclose(groups(batch)["loss"], groups(alone)["loss"])
    torch.testing.assert_close(pairs(batch)["loss"], groups(alone)["loss"])


@pytest.mark.parametrize("edge", [CONTRASTIVE, MSE], ids=["contrastive", "mse"])
@pytest.mark.parametrize("name", [IMAGE_TEACHER, TEACHER_STUDENT])
def test_rows_without_a_teacher_text_are_dropped_from_its_edges(model, batch, name, edge):
    triangle = triangle_of(model, {name: edge}, ["projector", "clip_projector"]).eval()
    keep_B = batch.has_teacher_B
    assert 0 < keep_B.sum() < len(keep_B)
    torch.testing.assert_close(triangle(batch)["loss"], triangle(some_rows(batch, keep_B))["loss"])


def test_rows_without_a_teacher_text_stay_on_other_edges(model, batch):
    triangle = triangle_of(model, {IMAGE_STUDENT: CONTRASTIVE}, ["projector"]).eval()
    assert not torch.allclose(triangle(batch)["loss"], triangle(some_rows(batch, batch.has_teacher_B))["loss"])


@pytest.mark.parametrize("edge", [CONTRASTIVE, MSE], ids=["contrastive", "mse"])
def test_a_batch_without_any_teacher_text_can_be_stepped_through(model, batch, edge):
    triangle = triangle_of(model, {TEACHER_STUDENT: edge}, ["projector"])
    loss = triangle(some_rows(batch, ~batch.has_teacher_B))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.projector.parameters())


def test_a_learned_scale_starts_at_one_over_the_temperature_and_learns(model, batch):
    triangle = triangle_of(model, {IMAGE_STUDENT: Edge(loss="contrastive", learned=True)}, ["projector"])
    assert triangle.scale(IMAGE_STUDENT).item() == pytest.approx(1 / 0.07)
    triangle(batch)["loss"].backward()
    assert triangle.scales[IMAGE_STUDENT].grad.abs() > 0


def test_a_learned_scale_is_clamped_at_100(model):
    triangle = triangle_of(model, {IMAGE_STUDENT: Edge(loss="contrastive", learned=True)}, ["projector"])
    with torch.no_grad():
        triangle.scales[IMAGE_STUDENT].fill_(6.0)
    scale = triangle.scale(IMAGE_STUDENT)
    assert scale.item() == pytest.approx(100, rel=1e-6)
    scale.backward()
    assert triangle.scales[IMAGE_STUDENT].grad > 0  # it can come back


def test_a_scale_that_is_clamped_after_exp_keeps_its_value_and_gets_no_gradient(model):
    edge = Edge(loss="contrastive", learned=True, clamp="exp")
    triangle = triangle_of(model, {IMAGE_STUDENT: edge}, ["projector"])
    for value, scale, slope in ((6.0, 100.0, 0.0), (2.0, np.exp(2.0), np.exp(2.0))):
        with torch.no_grad():
            triangle.scales[IMAGE_STUDENT].fill_(value)
        found = triangle.scale(IMAGE_STUDENT)
        (gradient,) = torch.autograd.grad(found, triangle.scales[IMAGE_STUDENT])
        assert (found.item(), gradient.item()) == pytest.approx((scale, slope))
        assert triangle.scales[IMAGE_STUDENT].item() == value


def test_a_fixed_temperature_is_no_parameter(model):
    triangle = triangle_of(model, {IMAGE_STUDENT: Edge(loss="contrastive", temperature=0.02)}, ["projector"])
    assert triangle.scale(IMAGE_STUDENT) == pytest.approx(50)
    assert not list(triangle.scales.parameters())


@pytest.mark.parametrize(
    "live", [{"image"}, {"teacher_text"}, {"encoder"}, set(TOWERS)], ids=lambda towers: "+".join(sorted(towers))
)
def test_features_that_are_read_give_the_loss_of_towers_that_compute(model, captions, live):
    triangle = triangle_of(model, ALL_EDGES, ["projector"]).eval()
    read = triangle(batch_of(model, captions))
    computed = triangle(batch_of(model, captions, live=live))
    for name in read:
        torch.testing.assert_close(computed[name], read[name], rtol=1e-5, atol=1e-6)


def given(batch: TriangleBatch) -> set[str]:
    return {f.name for f in fields(batch) if getattr(batch, f.name) is not None}


def test_a_read_batch_holds_features_and_a_live_one_inputs(model, captions):
    read, live = (given(batch_of(model, captions, live=live)) for live in (set(), set(TOWERS)))
    both = {"languages_B", "groups_B", "has_teacher_B"}
    assert read == both | {"image_BE", "teacher_BE", "pooled_BH"}
    assert live == both | {"pixels_BCHW", "teacher_ids_BT", "ids_BT", "mask_BT"}


def test_features_are_computed_in_eval_mode_whatever_the_mode(model, captions):
    model.train()
    first, again = (batch_of(model, captions).pooled_BH for _ in range(2))
    assert torch.equal(first, again)
    assert model.encoder.training


def test_states_that_are_read_have_the_token_limit_of_their_stage(model, captions):
    store = FeatureCache()
    batch_of(model, captions, max_tokens=4, store=store)
    after_a_short_stage = batch_of(model, captions, store=store).pooled_BH
    torch.testing.assert_close(after_a_short_stage, batch_of(model, captions).pooled_BH)


def test_positives_of_an_image_are_averaged_or_summed(model: MultilingualClip, batch: TriangleBatch) -> None:
    ways = {way: Edge(loss="contrastive", positives=way) for way in ("image", "image_sum", "pair")}
    with torch.no_grad():
        found = {way: triangle_of(model.eval(), {IMAGE_STUDENT: e}, [])(batch)["loss"] for way, e in ways.items()}
        left, right = (F.normalize(v, dim=-1) for v in vertices(model, batch))
    same_BB = (batch.groups_B[:, None] == batch.groups_B).float()
    assert same_BB.sum(1).max() == 3
    for way, weight_BB in {
        "image": same_BB / same_BB.sum(1, keepdim=True),
        "image_sum": same_BB,
        "pair": torch.eye(len(same_BB)),
    }.items():
        logits_BB = left @ right.T / 0.07
        expected = -((weight_BB * (logits_BB.log_softmax(1) + logits_BB.T.log_softmax(1))).sum(1).mean()) / 2
        assert found[way].item() == pytest.approx(expected.item(), rel=1e-5)


def vertices(model: MultilingualClip, batch: TriangleBatch) -> tuple[Tensor, Tensor]:
    triangle = triangle_of(model.eval(), {IMAGE_STUDENT: CONTRASTIVE}, [])
    return triangle.image(batch), triangle.student_text(batch)


def test_rows_without_a_teacher_text_are_dropped_or_take_the_image(
    model: MultilingualClip, batch: TriangleBatch
) -> None:
    assert batch.has_teacher_B is not None
    drop, image = Edge(loss="contrastive"), Edge(loss="contrastive", missing_teacher="image")
    with torch.no_grad():
        triangle = triangle_of(model.eval(), {TEACHER_STUDENT: image}, [])
        found = triangle(batch)["loss"]
        left = torch.where(batch.has_teacher_B[:, None], triangle.teacher_text(batch), triangle.image(batch))
        expected = losses.contrastive(left, triangle.student_text(batch), 1 / 0.07, batch.groups_B)
        dropped = triangle_of(model, {TEACHER_STUDENT: drop}, [])(batch)["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert dropped.item() != pytest.approx(expected.item(), rel=1e-3)


def test_each_loss_of_an_edge_is_that_of_its_vertices(model: MultilingualClip, batch: TriangleBatch) -> None:
    edges = {
        IMAGE_STUDENT: Edge(loss="sigmoid"),
        IMAGE_STUDENT + "+kl": Edge(loss="kl", temperature=0.2),
        TEACHER_STUDENT: Edge(loss="cosine"),
        TEACHER_STUDENT + "+kl": Edge(loss="kl"),
        TEACHER_STUDENT + "+relational": Edge(loss="relational", weight=3.0),
    }
    triangle = triangle_of(model.eval(), edges, ["projector"])
    found = triangle(batch)
    image, teacher, student = triangle.image(batch), triangle.teacher_text(batch), triangle.student_text(batch)
    keep_B = batch.has_teacher_B
    own = student[keep_B], teacher[keep_B]
    expected = {
        IMAGE_STUDENT: sigmoid(image, student, 10.0, -10.0, batch.groups_B),
        IMAGE_STUDENT + "+kl": distillation.kl(*own, image[keep_B], 5.0),
        TEACHER_STUDENT: distillation.cosine(*own),
        TEACHER_STUDENT + "+kl": distillation.kl(*own, teacher[keep_B], 1 / 0.07),
        TEACHER_STUDENT + "+relational": distillation.relational(*own),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(found["loss"], sum(edges[name].weight * value for name, value in expected.items()))


def test_a_teacher_that_is_only_followed_is_computed_alone_for_that(model, batch):
    triangle = triangle_of(model.eval(), {IMAGE_STUDENT + "+kl": Edge(loss="kl")}, ["projector"])
    assert set(triangle.embed(batch)) == {"image", "student_text", "teacher_text"}
    assert "matching" in triangle(batch)


def test_dims_are_the_mean_over_prefixes_of_both_sides(model, batch):
    edges = {IMAGE_STUDENT: Edge(loss="contrastive", dims=[3, 7, "full"])}
    triangle = triangle_of(model.eval(), edges, ["projector"])
    image, student = triangle.image(batch), triangle.student_text(batch)
    each = [losses.contrastive(image[:, :d], student[:, :d], 1 / 0.07, batch.groups_B) for d in (3, 7, None)]
    torch.testing.assert_close(triangle(batch)["loss"], torch.stack(each).mean())


@pytest.mark.parametrize("name", [IMAGE_TEACHER, IMAGE_TEACHER + "+more"])
def test_sigmoid_learns_a_scale_and_a_bias_that_a_teacher_keeps(model, batch, name):
    triangle = triangle_of(model, {name: Edge(loss="sigmoid", learned=True)}, ["image", "teacher_text"])
    assert [round(float(p), 4) for p in triangle.scales.values()] == [2.3026, -10.0]
    triangle(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in triangle.scales.values())
    clip = model.clip[0].model
    clip.logit_bias = torch.nn.Parameter(torch.zeros([]))  # as SigLIP's have one
    with torch.no_grad():
        for value in triangle.scales.values():
            value -= 1
    triangle.finish()
    assert (float(model.teacher_scale), float(clip.logit_bias)) == (pytest.approx(1.3026, abs=1e-4), -11)
    clip.logit_bias = None
