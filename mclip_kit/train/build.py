"""From a recipe to the parts of a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.bitext import open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.examples import Examples, from_bitexts, from_captions
from mclip_kit.data.leakage import LEAKAGE, Leak, held_out_beside, leaks, read_json
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError
from mclip_kit.features.feed import Needs
from mclip_kit.recipe import Cache, NewEncoder, Recipe
from mclip_kit.stage import Stage
from mclip_kit.towers.clip import build_clip
from mclip_kit.towers.hub import MissingWeights
from mclip_kit.towers.lora import adapt
from mclip_kit.towers.model import MultilingualClip, load
from mclip_kit.towers.xlmr import Encoder, named_encoder, new_encoder
from mclip_kit.train import gradients
from mclip_kit.triangle import EdgeLoss

TEACHER_LANGUAGE = "en"  # CLIP speaks English


def build_model(recipe: Recipe) -> MultilingualClip:
    """The recipe's towers; random weights depend on the seed alone."""
    torch.manual_seed(recipe.seed)
    if recipe.start:
        model = load(recipe.start)
        if recipe.lora:
            adapt(model.encoder, **recipe.lora.model_dump())
        model.sources = recipe.sources
        return model
    assert recipe.teacher
    assert recipe.encoder
    assert recipe.projector
    missing: list[tuple[str, str]] = []
    try:
        encoder = build_encoder(recipe.encoder, next(iter(recipe.data.bitexts), None))
    except MissingWeights as error:
        missing += error.what
    try:
        clip = build_clip(recipe.teacher.model, recipe.teacher.weights)
    except MissingWeights as error:
        missing += error.what
    if missing:
        raise MissingWeights(*missing)
    model = MultilingualClip(clip, encoder, recipe.projector.model_dump(), recipe.clip_projector)
    if recipe.lora:
        adapt(model.encoder, **recipe.lora.model_dump())
    new = isinstance(recipe.encoder, NewEncoder)
    model.sources = recipe.sources
    model.made_from = f"a new encoder of {encoder.config.num_hidden_layers} layers" if new else str(recipe.encoder)
    return model


def build_encoder(wanted: str | NewEncoder, bitext: str | None) -> Encoder:
    """A pretrained encoder by name, or a new one with the vocabulary of the first bitext folder."""
    if isinstance(wanted, str):
        return named_encoder(wanted)
    tokenizer = XlmrTokenizer(Path(str(bitext)))
    return new_encoder(**wanted.model_dump(exclude={"weights"}), tokenizer=tokenizer)


def check_data(recipe: Recipe) -> Captions | None:
    """Open the recipe's folders before any weight is loaded; DataError if one is missing."""
    for folder in recipe.data.bitexts:
        open_bitext(folder)
    return read_captions(recipe.data.captions) if recipe.data.captions else None


def shared_with_tests(recipe: Recipe) -> list[Leak]:
    """What the recipe trains on of test sets that are prepared beside its data, and what its start was trained on."""
    trained = training_splits(recipe)
    tests = {test for folder in trained for test in held_out_beside(folder)}
    before = read_json(Path(recipe.start).parent / LEAKAGE) if recipe.start else []
    return list(dict.fromkeys([*before, *leaks(trained, tests)]))


def training_splits(recipe: Recipe) -> dict[Path, set[str]]:
    """Prepared folder -> the splits that some stage trains on."""
    trained: dict[Path, set[str]] = {}
    for stage in recipe.stages:
        bitexts = [Path(folder).parent for folder in recipe.data.bitexts]  # their manifests lie above them
        splits = [stage.split] if isinstance(stage.split, str) else stage.split.values()
        for folder in bitexts if stage.data == "bitext" else [Path(str(recipe.data.captions))]:
            trained.setdefault(folder, set()).update(splits)
    return trained


def build_examples(stage: Stage, recipe: Recipe, model: MultilingualClip, captions: Captions | None) -> Examples:
    """The training rows of a stage."""
    cut = min(stage.max_tokens, model.encoder.positions)
    tokenize = lambda texts: model.student_tokens(texts, cut)  # noqa: E731
    if stage.data == "captions":
        assert captions is not None
        examples = from_captions(captions, stage.split, stage.languages, TEACHER_LANGUAGE, tokenize)
    else:
        assert isinstance(stage.split, str)
        examples = from_bitexts(
            [open_bitext(folder) for folder in recipe.data.bitexts],
            stage.split,
            stage.languages,
            TEACHER_LANGUAGE,
            include_teacher_language=stage.include_english,
            max_tokens=cut,
            tokenize=tokenize,
            pieces=model.encoder.tokenizer.pieces(),
        )
    dropping = [e for name, e in stage.edges.items() if "teacher_text" in name and e.without_teacher == "drop"]
    if len(dropping) == len(stage.edges) and not any(examples.teacher_texts):
        raise DataError(f"stage {stage.name}: no row has a text in {TEACHER_LANGUAGE}, which every edge needs")
    rows = np.bincount(examples.languages_N) if stage.monolingual else np.array([len(examples)])
    if rows.min() < stage.batch_size:
        where = f" in {examples.languages[int(rows.argmin())]}" if stage.monolingual else ""
        raise DataError(f"stage {stage.name}: {rows.min()} rows{where} make no batch of {stage.batch_size}")
    return examples


def needs(stage: Stage, trained: set[str], cache: Cache) -> Needs:
    """What a stage asks for; `trained` are names of parameters."""
    live = {name.split(".")[0] for name in trained}
    if stage.augment:
        live.add("image")
    return Needs(
        vertices=frozenset(stage.vertices),
        live=frozenset(live),
        templates=tuple(stage.templates) if "teacher_text" in live else (),
        shift=stage.augment.shift if stage.augment else 0,
        colour=stage.augment.colour if stage.augment else 0.0,
        cache=cache.features,
        max_bad_fraction=cache.max_bad_fraction,
        duplicates=any(edge.loss == "contrastive" and edge.duplicates == "mask" for edge in stage.edges.values()),
    )


def step_gradients(stage: Stage) -> Callable[..., dict[str, Tensor]]:
    """How a step of the stage computes its gradients: at once, or in parts of `micro_batch` rows."""
    if stage.micro_batch is None:
        return gradients.whole
    means = stage.data == "bitext" and all(edge.loss == "mse" for edge in stage.edges.values())
    return partial(gradients.accumulated if means else gradients.cached, size=stage.micro_batch)


def edge_losses(stage: Stage) -> dict[str, EdgeLoss]:
    """The stage's edges, as the triangle takes them."""
    return {name: EdgeLoss(**edge.model_dump()) for name, edge in stage.edges.items()}
