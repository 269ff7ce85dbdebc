"""Pictures as tensors: the teacher's own transform, and augmentation for training."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.errors import DataError

Transform = Callable[[Image.Image], Tensor]


def picture_size(preprocess: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a transform's pixels; `size` of its config is one number or two.

    >>> picture_size({"size": 224})
    (224, 224)
    """
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def read_pixels(
    captions: Captions, images: np.ndarray, transform: Transform, preprocess: dict[str, Any]
) -> tuple[Tensor, list[int]]:
    """Read pictures and apply the teacher's transform.

    Args:
        captions: the prepared folder.
        images: int (N,), rows of its picture table.
        transform: of the teacher (`Clip.transform`), which also makes pictures RGB.
        preprocess: the transform's `size`, `mean` and `std`.
    Returns:
        Normalised pixels (N, 3, s, s), and the positions of pictures that could not be read, for which the pixels are
        zeros.
    """
    if captions.pixels is not None:
        return to_pixels(captions.pixels[images], transform, preprocess), []
    shape, unreadable = (len(images), 3, *picture_size(preprocess)), []
    pixels_NCHW = torch.empty(shape, memory_format=torch.channels_last)  # convolutions run faster so
    for row, image in enumerate(images):
        try:
            pixels_NCHW[row] = transform(captions.open(int(image)))
        except DataError:
            pixels_NCHW[row] = 0
            unreadable.append(row)
    return pixels_NCHW, unreadable


def to_pixels(pictures_NSSC: np.ndarray, transform: Transform, preprocess: dict[str, Any]) -> Tensor:
    """Apply the teacher's transform to pictures uint8 (N, S, S, 3); returns normalised pixels (N, 3, s, s).

    Pictures that already have the teacher's size are only normalised, all at once.
    """
    if pictures_NSSC.shape[1:3] == picture_size(preprocess):
        scaled_NCHW = torch.from_numpy(np.ascontiguousarray(pictures_NSSC)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
        return (scaled_NCHW - mean) / std
    return torch.stack([transform(Image.fromarray(np.asarray(picture))) for picture in pictures_NSSC])


def augment(pixels_BCHW: Tensor, shift: int, colour: float) -> Tensor:
    """Shift each picture by up to `shift` pixels (edges repeat) and change brightness and contrast by up to `colour`.

    The random numbers are from torch's default generator. `pixels_BCHW` are normalised: brightness adds up to `colour`
    standard deviations, contrast scales the distance from the picture's mean by up to 1 +- `colour`.
    """
    B, _, H, W = pixels_BCHW.shape
    if shift:
        dy_B, dx_B = torch.randint(-shift, shift + 1, (2, B), device=pixels_BCHW.device)
        rows_BH = (torch.arange(H, device=pixels_BCHW.device) + dy_B[:, None]).clamp(0, H - 1)
        columns_BW = (torch.arange(W, device=pixels_BCHW.device) + dx_B[:, None]).clamp(0, W - 1)
        batch_B11 = torch.arange(B, device=pixels_BCHW.device)[:, None, None]
        pixels_BCHW = pixels_BCHW.permute(0, 2, 3, 1)[batch_B11, rows_BH[:, :, None], columns_BW[:, None, :]]
        pixels_BCHW = pixels_BCHW.permute(0, 3, 1, 2)
    if colour:
        change_2B = (torch.rand(2, B, 1, 1, 1, device=pixels_BCHW.device) * 2 - 1) * colour
        mean_B111 = pixels_BCHW.mean((1, 2, 3), keepdim=True)
        pixels_BCHW = (pixels_BCHW - mean_B111) * (1 + change_2B[0]) + mean_B111 + change_2B[1]
    return pixels_BCHW
