"""What the encode methods accept, one item or many, and batches of items of similar length."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mclip_kit.errors import DataError, first_line

Picture = Image.Image | str | Path
Texts = str | Sequence[str]
Pictures = Picture | Sequence[Picture]


def as_texts(texts: Texts) -> list[str]:
    """A list of texts; one string is one text.

    Raises:
        TypeError: an item is not a string.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"texts[{row}]: give a str, not {type(text).__name__}")
    return listed


def as_pictures(images: Pictures) -> list[Picture]:
    """A list of PIL pictures and paths; the paths are not opened yet.

    Raises:
        TypeError: an item is neither a PIL picture nor a path.
    """
    listed = [images] if isinstance(images, Image.Image | str | os.PathLike) else list(images)
    for row, image in enumerate(listed):
        if not isinstance(image, Image.Image | str | os.PathLike):
            raise TypeError(f"images[{row}]: give a PIL picture or a path, not {type(image).__name__}")
    return listed


def open_picture(image: Picture) -> Image.Image:
    """The picture, opened if it is a path, in RGB.

    Raises:
        DataError: the file is missing, or PIL cannot read it.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except Exception as error:  # PIL's decoders raise many classes on damaged files
        raise DataError(f"{image}: cannot be read as a picture: {first_line(error)}") from None


def embed_by_length(
    items: Sequence[Any],
    lengths: Sequence[int],
    encode: Callable[[Sequence[Any]], Tensor],
    width: int,
    batch_size: int,
) -> Tensor:
    """Encode items in batches of similar length, so that little is padded.

    Args:
        items: N texts, token ids or pictures.
        lengths: the length of each item, in any unit; equal lengths keep their order.
        encode: a batch of B items to (B, D).
        width: D.
        batch_size: items per batch. The longest items come first, so that too large a batch fails at once.
    Returns:
        L2-normalised rows (N, D) in the order of `items`, float32 on the CPU.
    Raises:
        ValueError: batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, not {batch_size}")
    order = sorted(range(len(items)), key=lambda row: -lengths[row])
    out_ND = torch.zeros(len(items), width)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        out_ND[rows] = F.normalize(encode([items[row] for row in rows]).float(), dim=-1).cpu()
    return out_ND
