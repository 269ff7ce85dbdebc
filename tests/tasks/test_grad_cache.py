"""Gradients of a batch in parts are those of the batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from mclip_kit import losses
from mclip_kit.config.recipe import Cache, Recipe
from mclip_kit.config.stages import Edge, TriangleStage
from mclip_kit.config.yaml import parse
from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.columns import Labels, Strings
from mclip_kit.data.datasets import rows_from_bitexts, rows_from_captions
from mclip_kit.data.triangle_rows import TriangleRows
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks import grad_cache
from mclip_kit.tasks.base import full_batch
from mclip_kit.tasks.triangle_batches import TriangleBatches
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch
from mclip_kit.train.build import build_model
from mclip_kit.train.optim import set_activation_checkpointing, trainable
from tests import tiny

ROWS = 256
TRIKD = {
    "image-student_text": Edge(loss="contrastive", learned=True),
    "teacher_text-student_text": Edge(loss="contrastive", weight=0.1, temperature=0.376),
}
WITH_IMAGE = Edge(loss="contrastive", weight=0.1, missing_teacher="image")
STAGES = {
    "contrastive": ({"image-student_text": Edge(loss="contrastive", learned=True)}, ["student"]),
    "pair": ({"image-student_text": Edge(loss="contrastive", positives="pair")}, ["student"]),
    "image_sum": ({"image-student_text": Edge(loss="contrastive", positives="image_sum")}, ["student"]),
    "trikd": (TRIKD, ["projector", "clip_projector"]),
    "trikd, image for teacher": (TRIKD | {"teacher_text-student_text": WITH_IMAGE}, ["student", "clip_projector"]),
    "mse": ({"teacher_text-student_text": Edge(loss="mse", normalize="both")}, ["student"]),
    "sigmoid": ({"image-student_text": Edge(loss="sigmoid", learned=True, dims=[4, "full"])}, ["student"]),
    "kl": (
        {"image-student_text": Edge(loss="kl"), "image-student_text+sum": Edge(loss="relational")},
        ["student", "clip_projector"],
    ),
    "m2m": (
        {
            "teacher_text-student_text": Edge(loss="cosine", dims=[3, "full"]),
            "teacher_text-student_text+kl": Edge(loss="kl"),
        },
        ["student"],
    ),
    "from scratch": ({"image-teacher_text": Edge(loss="contrastive", learned=True)}, ["image", "teacher_text"]),
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
    model: MultilingualClip, rows: TriangleRows, captions: Captions, edges: dict[str, Edge], train: list[str]
) -> TriangleBatch:
    """A batch with features of the towers that are not trained."""
    live = {name.split(".")[0] for name in trainable(model, train)}
    data = "captions" if rows.images_N[0] >= 0 else "bitext"
    common = {"name": "s", "train": train, "data": data, "lr": 1e-3, "epochs": 1, "batch_size": 24}
    stage = TriangleStage.model_validate({**common, "edges": edges})
    towers = FrozenTowers(model, FeatureCache())
    batches = TriangleBatches(towers, rows, stage, live, Cache.model_validate({}), captions)
    return batches.batch(np.random.default_rng(1).integers(0, len(batches.rows), ROWS))


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
def test_cached_gradients_are_those_of_the_batch(model, captions, stage, size, monkeypatch):
    edges, train = STAGES[stage]
    rows = tiny.rows_of(rows_from_captions(captions, "train", "all", "en", model.student_tokens))
    batch = batch_of(model, rows, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).eval()
    whole, loss = gradients_of(triangle, batch, full_batch)
    monkeypatch.setattr(losses, "LOGITS", 5000)  # of 19 rows, while a part has 32 or 100
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
    rows = tiny.rows_of(
        rows_from_bitexts([open_bitext(squares / "bitext")], "train", "all", "en", pieces=pieces, **how)
    )
    batch = batch_of(model, rows, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).eval()
    whole, loss = gradients_of(triangle, batch, full_batch)
    parts, same = gradients_of(triangle, batch, grad_cache.accumulated, size=48)
    assert difference(whole, parts) < 1e-5
    assert same == pytest.approx(loss, rel=1e-5)


def test_both_passes_see_the_same_dropout(model, captions):
    edges, train = STAGES["contrastive"]
    rows = tiny.rows_of(rows_from_captions(captions, "train", "all", "en", model.student_tokens))
    batch = batch_of(model, rows, captions, edges, train)
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


def test_activation_checkpointing_gives_the_same_gradients(model, captions):
    edges, train = STAGES["contrastive"]
    rows = tiny.rows_of(rows_from_captions(captions, "train", "all", "en", model.student_tokens))
    batch = batch_of(model, rows, captions, edges, train)
    triangle = Triangle(model, edges, trainable(model, train)).train()
    kept, _ = gradients_of(triangle, batch, full_batch)
    set_activation_checkpointing(model, True)
    again, _ = gradients_of(triangle, batch, full_batch)
    set_activation_checkpointing(model, False)
    assert difference(kept, again) < 1e-6


def test_parts_are_no_wider_than_their_texts(model, captions):
    rows = tiny.rows_of(rows_from_captions(captions, "train", "all", "en", model.student_tokens))
    batch = batch_of(model, rows, captions, *STAGES["contrastive"])
    parts = batch.split(3)
    assert sum(map(len, parts)) == ROWS
    assert all(part.mask_BT.sum(1).max() == part.mask_BT.shape[1] == part.ids_BT.shape[1] for part in parts)
    assert len({part.mask_BT.shape[1] for part in parts}) > 1


def with_duplicates(captions: Captions) -> Captions:
    """The same pictures; every second one has the captions of the one before."""
    number = captions.images
    texts = captions.texts.tolist()
    languages = np.array(captions.languages.tolist())
    for row in np.flatnonzero(number % 2):
        same = (number == number[row] - 1) & (languages == languages[row])
        texts[row] = captions.texts[same][0]
    return replace(captions, texts=Strings.of(texts), splits=Labels.of(["train"] * len(texts)))


@pytest.mark.parametrize("positives", ["image", "image_sum", "pair"])
def test_masked_duplicates_have_the_same_gradients_in_parts(model, captions, positives):
    twice, train = with_duplicates(captions), ["projector", "clip_projector"]
    rows = tiny.rows_of(rows_from_captions(twice, "train", "all", "en", model.student_tokens))
    edges = {
        duplicates: {
            "image-student_text": Edge(loss="contrastive", learned=True, positives=positives, duplicates=duplicates)
        }
        for duplicates in ("mask", "negatives")
    }
    batch = batch_of(model, rows.select(np.arange(60)), twice, edges["mask"], train)
    assert ((batch.texts_B[:, None] == batch.texts_B) & (batch.groups_B[:, None] != batch.groups_B)).any()
    losses = {}
    for duplicates, edge in edges.items():
        triangle = Triangle(model, edge, trainable(model, train)).eval()
        whole, loss = gradients_of(triangle, batch, full_batch)
        parts, same = gradients_of(triangle, batch, grad_cache.cached, size=16)
        assert same == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)
        losses[duplicates] = loss["loss"]
    assert losses["mask"] < losses["negatives"]
