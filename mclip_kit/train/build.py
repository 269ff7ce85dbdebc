"""From a recipe to the parts of a run."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mclip_kit.config.recipe import Cache, NewDecoder, NewEncoder, Recipe
from mclip_kit.config.stages import TranslationStage, TriangleStage
from mclip_kit.data.batching import Plan
from mclip_kit.data.bitext import available, open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.datasets import TriangleRows, rows_from_bitexts, rows_from_captions
from mclip_kit.data.leakage import LEAKAGE, Leak, held_out_beside, leaks, read_json
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.clip import build_clip
from mclip_kit.models.hub import MissingWeights
from mclip_kit.models.lora import adapt
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.text_encoder import Encoder, new_encoder
from mclip_kit.models.translator import Decoder, Translator, new_decoder
from mclip_kit.tasks import grad_cache
from mclip_kit.tasks.translation import Translation
from mclip_kit.tasks.triangle import EdgeLoss, Triangle
from mclip_kit.tasks.triangle_batches import Needs

TEACHER_LANGUAGE = "en"  # CLIP speaks English


class Rows(NamedTuple):
    """What a stage trains on.

    Attributes:
        plan: which rows share a batch, and when.
        fetch: rows to a batch.
        steps, per_epoch: of the stage, and of a pass over its rows.
        languages: that the model learns from them.
    """

    plan: Plan
    fetch: Callable[[np.ndarray], Any]
    steps: int
    per_epoch: int
    languages: list[str]


def build_accelerator(recipe: Recipe) -> Accelerator:
    """Devices, processes and mixed precision."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # on CPUs accelerate must be told to join a launcher's others
    return Accelerator(mixed_precision=_precision(recipe.precision), cpu=several and not torch.cuda.is_available())


def _precision(wanted: str) -> str:
    if wanted == "fp16" and not torch.cuda.is_available():
        raise RecipeError("precision: fp16 needs a GPU; use bf16 or fp32")
    if wanted == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    return {"fp32": "no"}.get(wanted, wanted)


def build_model(recipe: Recipe) -> MultilingualClip | Translator:
    """The recipe's towers; random weights depend on the seed alone. Without a triangle, a translator."""
    torch.manual_seed(recipe.seed)
    model: MultilingualClip | Translator
    if recipe.start:
        model = load(recipe.start, device="cpu")  # accelerate moves it
    elif recipe.triangles:
        model = _build_clip(recipe)
    else:
        encoder = build_encoder(recipe)
        model = Translator(encoder, build_decoder(recipe, encoder))
        model.made_from = _made_from(recipe, encoder)
    if recipe.lora:
        adapt(model.encoder, **recipe.lora.model_dump())
    if recipe.translations and isinstance(model, MultilingualClip):
        model.decoder = build_decoder(recipe, model.encoder)
    model.sources = recipe.sources
    return model


def _build_clip(recipe: Recipe) -> MultilingualClip:
    assert recipe.teacher
    assert recipe.projector
    missing: list[tuple[str, str]] = []
    try:
        encoder = build_encoder(recipe)
    except MissingWeights as error:
        missing += error.what
    try:
        clip = build_clip(recipe.teacher.model, recipe.teacher.weights)
    except MissingWeights as error:
        missing += error.what
    if missing:
        raise MissingWeights(*missing)
    model = MultilingualClip(clip, encoder, recipe.projector.model_dump(), recipe.clip_projector)
    model.made_from = _made_from(recipe, encoder)
    return model


def _made_from(recipe: Recipe, encoder: Encoder) -> str:
    new = isinstance(recipe.encoder, NewEncoder)
    return f"a new encoder of {encoder.config.num_hidden_layers} layers" if new else str(recipe.encoder)


def build_decoder(recipe: Recipe, encoder: Encoder) -> Decoder:
    """A new decoder for the encoder, with a linear layer a source language if a stage asks for them."""
    sizes = recipe.decoder or NewDecoder.model_validate({})
    bitexts = [open_bitext(folder) for folder in recipe.data.bitexts]
    linear = [
        source
        for stage in recipe.translations
        if stage.language_linear
        for source, _ in available(bitexts, stage.split, stage.directions)
    ]
    return new_decoder(encoder, **sizes.model_dump(), languages=sorted(set(linear)))


def build_encoder(recipe: Recipe) -> Encoder:
    """A pretrained encoder by name, or a new one with the vocabulary of the first bitext folder."""
    wanted = recipe.encoder
    assert wanted
    if isinstance(wanted, str):
        return named_encoder(wanted)
    tokenizer = XlmrTokenizer(Path(next(iter(recipe.data.bitexts))))
    return new_encoder(**wanted.model_dump(exclude={"weights"}), tokenizer=tokenizer)


def check_data(recipe: Recipe) -> Captions | None:
    """Open the recipe's folders before any weight is loaded; DataError if one is missing."""
    for folder in recipe.data.bitexts:
        open_bitext(folder)
    return read_captions(recipe.data.captions) if recipe.data.captions else None


def check_processes(recipe: Recipe, processes: int) -> None:
    """RecipeError if a stage's batch cannot be dealt out evenly."""
    for stage in recipe.triangles:
        if stage.batch_size % processes:
            raise RecipeError(
                f"stage {stage.name}: batch_size {stage.batch_size} is not a multiple of the {processes} processes "
                "that share it"
            )


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


def build_examples(
    stage: TriangleStage, recipe: Recipe, model: MultilingualClip, captions: Captions | None
) -> TriangleRows:
    """The training rows of a stage."""
    cut = min(stage.max_tokens, model.encoder.positions)
    tokenize = lambda texts: model.student_tokens(texts, cut)  # noqa: E731
    if stage.data == "captions":
        assert captions is not None
        examples = rows_from_captions(captions, stage.split, stage.languages, TEACHER_LANGUAGE, tokenize)
    else:
        assert isinstance(stage.split, str)
        examples = rows_from_bitexts(
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


def needs(stage: TriangleStage, trained: set[str], cache: Cache) -> Needs:
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


def build_plan(stage: TriangleStage, examples: TriangleRows, shares: Sequence[float] | None, seed: int) -> Plan:
    """The stage's batches."""
    return Plan(
        examples.languages_N,
        examples.lengths_N,
        stage.batch_size,
        stage.language_temperature,
        stage.monolingual,
        seed,
        examples.sources_N,
        shares if stage.data == "bitext" else None,
    )


def build_objective(stage: TriangleStage | TranslationStage, model: Any, trained: set[str]) -> Triangle | Translation:
    """The stage's losses on the model, of which the named parameters learn."""
    if isinstance(stage, TranslationStage):
        contrast = (stage.contrast.weight, stage.contrast.temperature) if stage.contrast else None
        return Translation(model, trained, stage.label_smoothing, contrast)
    return Triangle(model, edge_losses(stage), trained)


def step_gradients(stage: TriangleStage | TranslationStage) -> Callable[..., dict[str, Tensor]]:
    """How a step of the stage computes its gradients: at once, or in parts of `micro_batch` rows."""
    if isinstance(stage, TranslationStage) or stage.micro_batch is None:
        return grad_cache.whole
    means = stage.data == "bitext" and all(edge.loss == "mse" for edge in stage.edges.values())
    return partial(grad_cache.accumulated if means else grad_cache.cached, size=stage.micro_batch)


def edge_losses(stage: TriangleStage) -> dict[str, EdgeLoss]:
    """The stage's edges, as the triangle takes them."""
    return {name: EdgeLoss(**edge.model_dump()) for name, edge in stage.edges.items()}
