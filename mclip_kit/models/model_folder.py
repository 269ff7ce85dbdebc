"""What loading a model folder checks: dtype and device, config.json, hashes, and the projectors' weights."""

import json
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mclip_kit import layout
from mclip_kit.config.mistakes import explain
from mclip_kit.config.model import AS_OPEN_CLIP, Pictures, TextCleaning
from mclip_kit.errors import MALFORMED, CheckpointError, first_line
from mclip_kit.files import hash_files, write_json, write_whole
from mclip_kit.models.device import PRECISIONS, auto_device, usable_device
from mclip_kit.storage import fetch
from mclip_kit.urls import values_with_urls

FORMAT = 1
HASHES = "hashes"
"""The entry of config.json or translator.json: file of a part -> its hash; its own name -> that of the rest."""
PARTS = (layout.CLIP, layout.ENCODER, layout.DECODER, layout.PROJECTOR, layout.LANGUAGE_LINEAR)
DTYPES = PRECISIONS | {str(dtype).removeprefix("torch."): dtype for dtype in (*PRECISIONS.values(), torch.float64)}

Dtype = torch.dtype | Literal["fp32", "bf16", "fp16", "float32", "bfloat16", "float16", "float64"]


def as_dtype(wanted: Dtype | None) -> torch.dtype | None:
    """A dtype of floating-point numbers by its name; ValueError if it is another."""
    found = DTYPES.get(wanted) if isinstance(wanted, str) else wanted
    if wanted is not None and not (isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1):
        raise ValueError(f"dtype: {wanted!r} is not known; use {', '.join(DTYPES)} or a torch dtype of these")
    return found


def as_device(wanted: str | torch.device) -> torch.device:
    """A device that can be used here; ValueError if it cannot."""
    return auto_device() if wanted == "auto" else usable_device(wanted)


class Settings(BaseModel):
    """config.json of a model folder: how its parts fit together, and what is known of the model."""

    projector: dict[str, Any]
    clip_projector: str
    text_cleaning: TextCleaning = "none"
    pictures: Pictures = AS_OPEN_CLIP
    trained_languages: list[str]
    made_from: str
    dims: list[Annotated[int, Field(ge=1)]] = []


def read_config(folder: Path, path: Path, verify: bool = True, part: str | tuple[str, ...] = "") -> Settings:
    """config.json, if it is one of a model folder in this version's format.

    Args:
        verify: hashes are checked, see `check_hashes`,
        part: of these parts of the folder.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder}: there is no such folder; give a model folder, such as RUN/{layout.MODEL}")
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise CheckpointError(f"{folder}: model format {settings['format']}; this version reads {FORMAT}")
        found = Settings.model_validate(settings)
        if verify:
            check_hashes(path, settings, part)
        return found
    except (FileNotFoundError, NotADirectoryError):
        inner = folder / layout.MODEL
        instead = f"; a model folder is {inner}" if (inner / layout.MODEL_CONFIG).is_file() else ""
        raise CheckpointError(f"{path}: missing; {folder} is not a complete model folder{instead}") from None
    except ValidationError as error:
        wrong = explain(error.errors(), settings, Settings)[0]
        raise CheckpointError(f"{path}: not the config of a model folder ({wrong})") from None
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(f"{path}: not the config of a model folder ({first_line(error)})") from None


def write_config(path: Path, settings: dict[str, Any]) -> None:
    """Write config.json or translator.json, last, with hashes of the settings and of the files of the folder's parts.

    Other files in the folder (README.md, card.json, evaluations) have no hash.
    """
    parts = [path.parent / part for part in PARTS]
    files = [part for part in parts if part.is_file()] + [file for part in parts for file in part.rglob("*")]
    names = sorted(name.relative_to(path.parent).as_posix() for name in files if name.is_file() and name.name[0] != ".")
    hashes = dict(zip(names, hash_files([path.parent / name for name in names]), strict=True))
    settings = values_with_urls(settings)  # as they are written, and hashed
    whole = {**settings, HASHES: hashes}
    write_json(path, {**settings, HASHES: {**hashes, path.name: _hash_settings(whole)}})


def _hash_settings(settings: dict[str, Any]) -> str:
    """A hash of settings as values: how they are indented or ordered does not count."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_hashes(path: Path, settings: dict[str, Any], part: str | tuple[str, ...] = "") -> None:
    """Compare the files of a model folder or translator folder with the hashes in its config; none: nothing is done.

    Args:
        path: config.json or translator.json, and
        settings: its content.
        part: only this part of the folder, or these: how the names of their files begin.
    Raises:
        CheckpointError: a file, or the config itself, is missing or is not as it was saved.
    """
    hashes = settings.get(HASHES)
    if hashes is None:
        return
    if not isinstance(hashes, dict) or not all(_is_inside(name) for name in hashes):
        raise CheckpointError(f"{path}: {HASHES} are not hashes of files in {path.parent}; copy the folder again")
    hashes = dict(hashes)
    own = hashes.pop(path.name, None)
    if own != _hash_settings({**settings, HASHES: hashes}):
        raise _changed(path, path)
    names = [name for name in hashes if name.startswith(part)]
    missing = [path.parent / name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{missing[0]}: missing, but {path.name} lists it; copy the folder again")
    for name, found in zip(names, hash_files([path.parent / name for name in names]), strict=True):
        if found != hashes[name]:
            raise _changed(path.parent / name, path)


def check_part(place: Path) -> None:
    """Check the files of a part that is loaded alone, `MODEL/encoder` or `MODEL/clip`, if the folder has hashes."""
    place = place.absolute()
    for path in (fetch(place.parent / name) for name in (layout.MODEL_CONFIG, layout.TRANSLATOR_CONFIG)):
        try:
            settings = json.loads(path.read_bytes()) if place.name in PARTS and path.is_file() else None
        except (OSError, *MALFORMED) as error:
            raise CheckpointError(f"{path}: damaged ({first_line(error)}); copy the folder again") from None
        if isinstance(settings, dict):
            check_hashes(path, settings, f"{place.name}/")


def _is_inside(name: str) -> bool:
    """Whether a name is that of a file in the folder or in a part of it."""
    place = PurePosixPath(name)
    return not place.is_absolute() and ".." not in place.parts and "\\" not in name and ":" not in name


def _changed(file: Path, config: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: damaged or edited, it is not what was saved; copy the folder again, or, if you edited it, remove "
        f'"{HASHES}" from {config}'
    )


def save_projectors(model: Any, path: Path) -> dict[str, Any]:
    """Write projectors.safetensors; two linear maps in a row become their product.

    Returns:
        The settings that build what was written.
    """
    settings = model.settings["projector"]
    two = settings["kind"] == "linear" and settings.get("hidden")
    head = model.projector.one_map() if two else model.projector.head
    tensors = {f"projector.head.{name}": tensor for name, tensor in head.state_dict().items()}
    others = {n: t for n, t in model.state_dict().items() if "projector." in n and not n.startswith("projector.head.")}
    with write_whole(path) as temporary:
        own = {name: t.detach().cpu().contiguous() for name, t in (others | tensors).items()}
        save_file(own, temporary, {"format": "pt"})
    return model.settings | {"projector": settings | {"hidden": None}} if two else dict(model.settings)


def load_projectors(model: nn.Module, path: Path) -> None:
    """Load projectors.safetensors into the projectors of a model; CheckpointError if it is damaged or does not fit."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {path.parent} is not a complete model folder")
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None
    own = {name: tensor for name, tensor in model.state_dict().items() if "projector." in name}
    wrong = sorted(
        name
        for name in own.keys() | state.keys()
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if wrong:
        raise CheckpointError(f"{path}: does not fit config.json: {wrong[0]}")
    model.load_state_dict(state, strict=False)
