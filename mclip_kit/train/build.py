"""From a recipe to the parts of a run."""

import os
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from mclip_kit.config.model import NewEncoder
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import Stage
from mclip_kit.data.bitext import check_split, open_bitext
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.corpora.source import File
from mclip_kit.data.languages import normalize_language
from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import RecipeError
from mclip_kit.features.cache import CACHE_VARIABLE as CACHE_VARIABLE
from mclip_kit.features.cache import FeatureCache, root_beside
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.interop.origin import mark
from mclip_kit.models.clip import build_clip
from mclip_kit.models.closed_form import check_init
from mclip_kit.models.device import PRECISIONS, as_precision, auto_device
from mclip_kit.models.finite import check_finite
from mclip_kit.models.hub import MissingWeights
from mclip_kit.models.lora import adapt
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.text_encoder import Encoder, is_causal, new_encoder
from mclip_kit.models.translator import Translator
from mclip_kit.progress import tqdm
from mclip_kit.tasks.base import TASKS
from mclip_kit.train.layer_decay import layer_scales
from mclip_kit.train.optim import cannot_checkpoint, trainable

PROJECTORS = ("projector", "clip_projector")  # small; they keep what they compute
PATIENCE = timedelta(hours=6)  # others wait so long while the main process evaluates, reads or writes


def build_accelerator(recipe: Recipe) -> Accelerator:
    """Devices, processes and mixed precision."""
    waits = InitProcessGroupKwargs(timeout=PATIENCE)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1  # on CPUs accelerate must be told to join a launcher's others
    cpu = several and not torch.cuda.is_available()
    return Accelerator(mixed_precision=_precision(recipe.precision), cpu=cpu, kwargs_handlers=[waits])


def _precision(wanted: str) -> str:
    """As accelerate names it."""
    names = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names[as_precision(wanted, auto_device())]


def build_cache(recipe: Recipe, folder: Path, accelerator: Accelerator) -> FeatureCache:
    """The feature cache: beside the run's folder, unless the recipe or the environment names another place."""
    section = recipe.cache
    return FeatureCache(
        None if section.features == "off" else root_beside(folder, section.folder),
        section.dtype,
        PRECISIONS.get(accelerator.mixed_precision, torch.float32),
        accelerator.process_index,
        accelerator.num_processes,
        section.features in ("tokens", "auto"),
        recipe.workers,
        tqdm.write if accelerator.is_main_process else lambda line: None,
    )


def build_model(recipe: Recipe) -> MultilingualClip | Translator:
    """The recipe's towers, with what its stages train besides; random weights depend on the seed alone.

    A recipe whose stages need no teacher has an encoder alone, or a translator.

    Raises:
        RecipeError: a stage has a setting that does not fit these towers.
    """
    torch.manual_seed(recipe.seed)
    model: MultilingualClip | Translator
    if recipe.init_from:
        model = load(recipe.init_from, device="cpu")  # accelerate moves it
    elif "teacher" in recipe.needs:
        model = _build_clip(recipe)
    else:
        encoder = build_encoder(recipe)
        model = Translator(encoder)
        model.made_from = _made_from(recipe, encoder)
    check_finite(_named(model, recipe))
    if isinstance(model, MultilingualClip):
        mark(model.clip[0], recipe.sources["image"])
        model.clip[0].pictures = recipe.pictures or model.clip[0].pictures
        model.text_cleaning = recipe.text_cleaning or model.text_cleaning
    if recipe.lora:
        adapt(model.encoder, **recipe.lora.model_dump())
    for task in dict.fromkeys(TASKS[type(stage)] for stage in recipe.stages):
        task.extend_model(model, recipe)
    model.sources = recipe.sources
    problems = [line for index, stage in enumerate(recipe.stages) for line in _misfits(f"stages.{index}", stage, model)]
    if problems:
        raise RecipeError("; ".join(problems))
    return model


def _misfits(where: str, stage: Stage, model: nn.Module) -> Iterator[str]:
    """Settings of a stage that do not fit its towers."""
    try:
        layer_scales(model, stage.layer_decay)
    except RecipeError as error:
        yield f"{where}.{error}"
    trained = sorted({name.split(".")[0] for name in trainable(model, stage.train)})
    for tower in trained if stage.checkpointing else ():
        name = None if tower in PROJECTORS else cannot_checkpoint(getattr(model, tower))
        if name:  # ALBERT, XLM, MPNet
            yield f"{where}.checkpointing: {name} cannot; set it to false"
    if getattr(stage, "micro_batch", None) is None:
        return
    for tower in trained:
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in getattr(model, tower).modules()):
            why = "projector.noise" if tower == "projector" else "its BatchNorm"
            yield (
                f"{where}.micro_batch: the stage trains {tower}, where {why} standardises by the mean and variance of "
                "the whole batch, which parts do not have; leave micro_batch out"
            )


def _named(model: MultilingualClip | Translator, recipe: Recipe) -> dict[str, nn.Module]:
    """Tower and name of its weights in the recipe, for messages -> the tower."""
    towers = ("encoder", "image", "teacher_text", "projector", "clip_projector")
    found = {tower: getattr(model, tower) for tower in towers if hasattr(model, tower)}
    return {f"{tower} {recipe.sources.get(tower, recipe.init_from or 'new')}": part for tower, part in found.items()}


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
    if recipe.projector.pool == "cls" and is_causal(encoder):
        raise RecipeError(
            f"projector.pool: cls reads the first token, which in a {encoder.config.model_type} does not depend on the "
            "others; set projector.pool=eos or mean"
        )
    model = MultilingualClip(clip, encoder, recipe.projector.model_dump(exclude={"init"}), recipe.clip_projector)
    if recipe.projector.init == "ridge":
        check_init(model.projector, recipe.clip_projector)
    model.made_from = _made_from(recipe, encoder)
    return model


def _made_from(recipe: Recipe, encoder: Encoder) -> str:
    new = isinstance(recipe.encoder, NewEncoder)
    return f"a new encoder of {encoder.config.num_hidden_layers} layers" if new else str(recipe.encoder)


def build_encoder(recipe: Recipe) -> Encoder:
    """A pretrained encoder by name, or a new one with the vocabulary of the first bitext folder."""
    wanted = recipe.encoder
    assert wanted
    if isinstance(wanted, str):
        return named_encoder(wanted)
    tokenizer = XlmrTokenizer(Path(next(iter(recipe.data.bitexts))))
    return new_encoder(**wanted.model_dump(exclude={"weights"}), tokenizer=tokenizer)


def open_data(recipe: Recipe) -> Captions | None:
    """Open the recipe's folders before any weight is loaded.

    Returns:
        Its captions, whose tables are read once a run.
    Raises:
        DataError: a folder or a file is missing, or has no rows in the split and the languages of a stage.
    """
    bitexts = [open_bitext(folder) for folder in recipe.data.bitexts]
    captions = read_captions(recipe.data.captions) if recipe.data.captions else None
    for language, path in recipe.data.unpaired.items():
        if language != normalize_language(language):
            raise RecipeError(f"data.unpaired.{language}: write {normalize_language(language)}")
        next(File(Path(path)).lines(), None)
    for stage in recipe.stages:
        if stage.data == "bitext":
            check_split(bitexts, str(stage.split))
        elif captions is not None:
            captions.check(stage.split, getattr(stage, "languages", "all"))
    return captions


def check_processes(recipe: Recipe, processes: int) -> None:
    """RecipeError if the processes cannot share a step of some stage evenly, or a tracker is not installed."""
    if "wandb" in recipe.trackers and find_spec("wandb") is None:
        raise RecipeError("trackers: wandb is not installed: pip install wandb, or --set 'trackers=[tensorboard]'")
    for stage in recipe.stages:
        stage.check_processes(processes)
