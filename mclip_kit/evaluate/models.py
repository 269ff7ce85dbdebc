"""The models of an evaluation: loaded, each with the feature cache in which its vectors are kept.

The same model is then scored again, by another protocol, against another baseline or at other widths, without a tower
being run. The key of a vector has the hash of the weights, the precision and the kind of device, so vectors of one are
never read for another. They are kept in float32: they are those that would be computed now, but for the last bits,
which depend on what shares a batch.
"""

import warnings
from pathlib import Path

import torch

from mclip_kit.config.recipe import Cache
from mclip_kit.config.recipe import load as load_recipe
from mclip_kit.config.yaml import RenamedKey
from mclip_kit.errors import DiskError, RecipeError, StorageError
from mclip_kit.evaluate.base import OFF, Request
from mclip_kit.features.cache import FILES, FeatureCache, root_beside
from mclip_kit.files import check_writable
from mclip_kit.layout import MODEL_CONFIG, RECIPE, TRANSLATOR_CONFIG
from mclip_kit.models.device import PRECISIONS, as_precision, auto_device, device_name
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.progress import note
from mclip_kit.storage import fetch, place


def open_model(request: Request, folder: str | Path) -> tuple[MultilingualClip, FeatureCache]:
    """A model on the device of the request, and the cache of its vectors."""
    cache = open_cache(request, place(folder))
    return load(folder), cache


def open_cache(request: Request, folder: Path) -> FeatureCache:
    """The cache of the vectors of one model; `folder`: the model's."""
    device = auto_device()
    precision = as_precision(request.precision, device)
    cache = FeatureCache(_root(request.cache, folder), "fp32", precision, workers=request.workers, device=device)
    cache.keeps_students = True
    return cache


def computed_on(request: Request) -> str:
    """The device, and the precision if it is lower than float32, for people: `cuda (NVIDIA H100), bf16`."""
    device = auto_device()
    precision = as_precision(request.precision, device)
    names = [name for name, dtype in PRECISIONS.items() if dtype == precision != torch.float32]
    return ", ".join([device_name(device), *names])


def _root(named: str | None, folder: Path) -> Path | None:
    """The cache's folder; None: vectors are kept as long as the command runs.

    Args:
        named: a folder, `off`, or None: the cache of the run that the model is from; without a run, a folder beside
            the model's.
    """
    if named is not None:
        return None if named == OFF else place(named)
    folder = folder.resolve()
    if any(fetch(folder.parent / name).is_file() for name in (MODEL_CONFIG, TRANSLATOR_CONFIG)):
        folder = folder.parent  # an encoder that is part of a model folder
    recipe = fetch(folder.parent / RECIPE)
    section = _section(recipe) if recipe.is_file() else None
    if section and section.features == OFF:
        return None
    root = root_beside(folder.parent, section.folder) if section else root_beside(folder)
    try:
        check_writable(root / FILES)  # the root is a folder
    except (DiskError, StorageError) as error:
        note(f"{error}: vectors are not kept; --cache FOLDER keeps them")
        return None
    return root


def _section(recipe: Path) -> Cache:
    """Where the run of a recipe keeps features; as by default, if this version cannot read the recipe."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RenamedKey)  # a run keeps the recipe that it was made from
            return load_recipe(recipe).cache
    except RecipeError:
        return Cache.model_validate({})
