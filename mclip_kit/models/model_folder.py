"""What loading a model folder checks: dtype and device, config.json, and the projectors' weights."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mclip_kit import layout
from mclip_kit.errors import CheckpointError, first_line

FORMAT = 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {str(dtype).removeprefix("torch."): dtype for dtype in (*DTYPES.values(), torch.float64)}

Dtype = torch.dtype | Literal["fp32", "bf16", "fp16", "float32", "bfloat16", "float16", "float64"]


def as_dtype(wanted: Dtype | None) -> torch.dtype | None:
    """A dtype of floating-point numbers by its name; ValueError if it is another."""
    found = DTYPES.get(wanted) if isinstance(wanted, str) else wanted
    if wanted is not None and not (isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1):
        raise ValueError(f"dtype: {wanted!r} is not known; use {', '.join(DTYPES)} or a torch dtype of these")
    return found


def as_device(wanted: str | torch.device) -> torch.device:
    """A device that can be used here; ValueError if it cannot."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"device: {wanted!r} cannot be used here; use auto or cpu ({first_line(error)})") from None


def read_config(folder: Path, path: Path) -> dict[str, Any]:
    """config.json, if it is one of a model folder in this version's format."""
    if not folder.exists():
        raise CheckpointError(f"{folder}: there is no such folder; give a model folder, such as RUN/{layout.MODEL}")
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if settings["format"] != FORMAT:
            raise CheckpointError(f"{folder}: model format {settings['format']}; this version reads {FORMAT}")
        return settings
    except (FileNotFoundError, NotADirectoryError):
        inner = folder / layout.MODEL
        instead = f"; a model folder is {inner}" if (inner / layout.MODEL_CONFIG).is_file() else ""
        raise CheckpointError(f"{path}: missing; {folder} is not a complete model folder{instead}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the config of a model folder ({first_line(error)})") from None


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
