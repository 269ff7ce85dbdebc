"""Gradients of a batch in parts are those of the batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.datasets import TriangleRows, rows_from_bitexts, rows_from_captions
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks import grad_cache
from mclip_kit.tasks.triangle import EdgeLoss, Triangle, TriangleBatch
from mclip_kit.tasks.triangle_batches import Feed, Needs
from mclip_kit.train.build import build_model
from mclip_kit.train.optim import set_activation_checkpointing, trainable
from tests import tiny

ROWS = 256
TRIKD = {
    "image-student_text": EdgeLoss("contrastive", learned=True),
    "teacher_text-student_text": EdgeLoss("contrastive", weight=0.1, temperature=0.376),
}
WITH_IMAGE = EdgeLoss("contrastive", weight=0.1, without_teacher="image")
STAGES = {
    "contrastive": ({"image-student_text": EdgeLoss("contrastive", learned=True)}, ["student"]),
    "pair": ({"image-student_text": EdgeLoss("contrastive", positives="pair")}, ["student"]),
    "image_sum": ({"image-student_text": EdgeLoss("contrastive", positives="image_sum")}, ["student"]),
    "trikd": (TRIKD, ["projector", "clip_projector"]),
    "trikd, image for teacher": (TRIKD | {"teacher_text-student_text": WITH_IMAGE}, ["student", "clip_projector"]),
    "mse": ({"teacher_text-student_text": EdgeLoss("mse", normalize="both")}, ["student"]),
    "from scratch": ({"image-teacher_text": EdgeLoss("contrastive", learned=True)}, ["image", "teacher_text"]),
}


@pytest.fixture(scope="module", params=["altclip", "transformer"])
def model(request: pytest.FixtureRequest, squares: Path) -> MultilingualClip:
    kind = {"kind": request.param, "pool": "eos"}
    tree = {**tiny.recipe(squares), "clip_projector": "linear", "projector": kind}
    tree["encoder"]["dropout"] = 0.0
    return build_model(parse(tree, Recipe, "tiny"))


@pytest.fixture(scope="module")
def captions(squares: Path) -> Captions:
    return read_captions(squares)


def batch_of(
    model: MultilingualClip, examples: TriangleRows, captions: Captions, edges, train: list[str]
) -> TriangleBatch:
    live = frozenset(name.split(".")[0] for name in trainable(model, train))
    vertices = frozenset(vertex for name in edges for vertex in name.split("-")) | {"image"}
    needs = Needs(vertices if len(examples.images_N) and examples.images_N[0] >= 0 else vertices - {"image"}, live)
    feed = Feed(FrozenTowers(model, FeatureCache()), examples, needs, captions)
    return TriangleBatch(**feed.batch(np.random.default_rng(1).integers(0, len(feed.examples), ROWS)))


def gradients_of(triangle: Triangle, batch: TriangleBatch, how: Callable[..., dict[str, Tensor]], **size: int):
    triangle.zero_grad()
    terms = how(Accelerator(cpu=True), triangle, batch, lambda part: torch.manual_seed(part), **size)
    found = {name: p.grad.clone() for name, p in triangle.named_parameters() if p.grad is not None}
    return found, {name: float(term.detach()) for name, term in terms.items() if name in (*triangle.edges, "loss")}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference, relative."""
    assert one.keys() == other.keys()
    apart = sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5
    return apart / sum(float(gradient.square().sum()) for gradient in one.values()) ** 0.5


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [32, 100])
def test_cached_gradients_are_those_of_the_batch(model, captions, stage, size):
    edges, train = STAGES[stage]
    examples = rows_from_captions(captions, "train", "all", "en", model.student_tokens)
    batch = batch_of(model, examples, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).eval()
    whole, loss = gradients_of(triangle, batch, grad_cache.whole)
    parts, same = gradients_of(triangle, batch, grad_cache.cached, size=size)
    assert difference(whole, parts) < 1e-5
    assert same == pytest.approx(loss, rel=1e-6)
    if stage != "mse":  # parts that are taken for the whole are something else
        lone, _ = gradients_of(triangle, batch, grad_cache.accumulated, size=size)
        assert difference(whole, lone) > 5e-4


def test_accumulated_gradients_of_teacher_learning_are_those_of_the_batch(model, squares, captions):
    edges, train = STAGES["mse"]
    how = {"include_teacher_language": True, "max_tokens": 30, "tokenize": model.student_tokens}
    pieces = model.encoder.tokenizer.pieces()
    examples = rows_from_bitexts([open_bitext(squares / "bitext")], "train", "all", "en", pieces=pieces, **how)
    batch = batch_of(model, examples, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).eval()
    whole, loss = gradients_of(triangle, batch, grad_cache.whole)
    parts, same = gradients_of(triangle, batch, grad_cache.accumulated, size=48)
    assert difference(whole, parts) < 1e-5
    assert same == pytest.approx(loss, rel=1e-5)


def test_both_passes_see_the_same_dropout(model, captions):
    edges, train = STAGES["contrastive"]
    examples = rows_from_captions(captions, "train", "all", "en", model.student_tokens)
    batch = batch_of(model, examples, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).train()
    for part in model.encoder.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.3
    parts, _ = gradients_of(triangle, batch, grad_cache.cached, size=64)
    embedded = []
    for number, part in enumerate(batch.split(64)):
        torch.manual_seed(number)
        embedded.append(triangle.embed(part))
    triangle.zero_grad()
    triangle.terms({name: torch.cat([e[name] for e in embedded]) for name in embedded[0]}, batch)["loss"].backward()
    by_hand = {name: p.grad for name, p in triangle.named_parameters() if p.grad is not None}
    for part in model.encoder.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    assert difference(by_hand, parts) < 1e-5


def test_what_is_computed_again_has_the_same_gradients(model, captions):
    edges, train = STAGES["contrastive"]
    examples = rows_from_captions(captions, "train", "all", "en", model.student_tokens)
    batch = batch_of(model, examples, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).train()
    kept, _ = gradients_of(triangle, batch, grad_cache.whole)
    set_activation_checkpointing(model, True)
    again, _ = gradients_of(triangle, batch, grad_cache.whole)
    set_activation_checkpointing(model, False)
    assert difference(kept, again) < 1e-6


def test_parts_are_no_wider_than_their_texts(model, captions):
    examples = rows_from_captions(captions, "train", "all", "en", model.student_tokens)
    batch = batch_of(model, examples, captions, *STAGES["contrastive"])
    parts = batch.split(3)
    assert sum(map(len, parts)) == ROWS
    assert all(part.mask_BT.sum(1).max() == part.mask_BT.shape[1] == part.ids_BT.shape[1] for part in parts)
    assert len({part.mask_BT.shape[1] for part in parts}) > 1
