"""The device that is used unless a user names one, and the precision of what is computed there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mclip_kit.errors import RecipeError, first_line

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Values of a recipe's key `precision` -> the type in which towers compute, by autocast unless it is float32."""
_chosen: torch.device | None = None


def auto_device() -> torch.device:
    """The device of `on_device`; else the GPU if CUDA is available, else the CPU."""
    return _chosen or torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def on_device(name: str) -> Iterator[torch.device]:
    """In the block, `auto_device` is the named device, in all threads of this process; `auto` changes nothing.

    >>> with on_device("cpu"):
    ...     auto_device()
    device(type='cpu')

    Raises:
        RecipeError: the device cannot be used here.
    """
    global _chosen
    before = _chosen
    try:
        _chosen = before if name == "auto" else usable_device(name)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    try:
        yield auto_device()
    finally:
        _chosen = before


def usable_device(name: str | torch.device) -> torch.device:
    """A device that can be used here; ValueError if it cannot."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"device: {str(name)!r} cannot be used here; use auto or cpu ({first_line(error)})") from None


def device_name(device: torch.device) -> str:
    """A device as results and reports name it: `cpu`, or `cuda (NVIDIA H100)`."""
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def as_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type in which towers compute; `auto` is bfloat16 on a GPU that has it, else float32.

    >>> as_precision("auto", torch.device("cpu"))
    torch.float32

    Raises:
        RecipeError: float16 is asked for without a GPU.
    """
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if wanted == "fp16" and device.type == "cpu":
        raise RecipeError("precision: fp16 needs a GPU; use bf16 or fp32")
    return PRECISIONS[wanted]


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """What towers compute in: autocast to a lower precision, or nothing of the kind for float32."""
    lower = precision != torch.float32
    return torch.autocast(device.type, precision if lower else None, enabled=lower)
