"""Whether what a recipe names on disk is there: checked before anything heavy is imported."""

from pathlib import Path
from typing import TYPE_CHECKING

from mclip_kit import layout
from mclip_kit.errors import CheckpointError
from mclip_kit.storage import exists, fetch
from mclip_kit.urls import is_copy

if TYPE_CHECKING:
    from mclip_kit.config.recipe import Recipe


def check_places(recipe: "Recipe") -> None:
    """Check the local folders and files of a recipe: prepared data, and weights that are not on the hub.

    Raises:
        DataError: a data folder is missing, or is not prepared.
        CheckpointError: a folder or file of weights is missing.
    """
    from mclip_kit.data.bitext import open_bitext
    from mclip_kit.data.captions import check_prepared

    for folder in recipe.data.bitexts:
        open_bitext(folder)
    if recipe.data.captions:
        check_prepared(recipe.data.captions)
    if recipe.init_from:
        check_model(Path(recipe.init_from))
    if isinstance(recipe.encoder, str):
        _check_encoder(recipe.encoder)
    if recipe.teacher and isinstance(recipe.teacher.model, str):
        _check_teacher(recipe.teacher.model)


def check_model(folder: Path) -> None:
    """CheckpointError if a folder is not a model folder."""
    path = fetch(folder / layout.MODEL_CONFIG)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {folder} is not a complete model folder")


def check_encoder_within(folder: Path) -> None:
    """CheckpointError if a folder has no encoder, neither itself nor within."""
    if not any(fetch(place / "config.json").is_file() for place in (folder, folder / layout.ENCODER)):
        raise CheckpointError(f"{folder}: contains no encoder; give a transformers folder or a model folder")


def _check_encoder(name: str) -> None:
    kind, _, place = name.partition(":")
    path = Path(place)
    if kind == "fairseq" and not exists(path):
        raise CheckpointError(f"encoder {name}: missing; fairseq: takes a folder with model.pt and dict.txt")
    may_be_on_hub = len(path.parts) <= 2 and not place.startswith((".", "/", "~"))
    if kind == "hf" and not may_be_on_hub and not fetch(path / "config.json").is_file():
        raise CheckpointError(f"encoder {name}: {path / 'config.json'} is missing; hf: takes a transformers folder")


def _check_teacher(name: str) -> None:
    kind, _, place = name.partition(":")
    path = Path(place)
    if kind == "local-dir" and not fetch(path / "open_clip_config.json").is_file():
        config = path / "open_clip_config.json"
        raise CheckpointError(f"{config}: missing; local-dir: takes a folder in open_clip's format")
    if kind == "openai" and not (exists(path) if is_copy(path) else path.is_file()):
        raise CheckpointError(f"{path}: missing; openai: takes a weight file in OpenAI's naming")
