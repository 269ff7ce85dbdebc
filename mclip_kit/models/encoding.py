"""What the encode methods accept, one item or many, and batches of items of similar length."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mclip_kit.config.model import TextCleaning
from mclip_kit.data import images
from mclip_kit.data.cleaned import UNTOUCHED
from mclip_kit.errors import DataError, first_line
from mclip_kit.storage import fetch, place

Picture = Image.Image | str | Path
Texts = str | Sequence[str]
Pictures = Picture | Sequence[Picture]


@cache
def _clean() -> Callable[[str], str]:
    from open_clip.tokenizer import get_clean_fn  # few texts need it

    clean: Callable[[str], str] = get_clean_fn("whitespace")
    return clean


def _ftfy(text: str) -> str:
    """A text cleaned by ftfy, unless there is nothing to clean."""
    return text if UNTOUCHED.fullmatch(text) else str(_clean()(text))


CLEANERS: dict[TextCleaning, Callable[[str], str] | None] = {"none": None, "ftfy": _ftfy}
"""What is done to a student's text before it is tokenised. `ftfy` is open_clip's own function (ftfy, HTML escapes,
white space), which its Hugging Face tokenizers always call."""
NOT_LISTS = (bytes, bytearray, memoryview, Mapping, Set)


def _listed(items: Any, one: type | tuple[type, ...], name: str, wanted: str) -> list[Any]:
    """A list of items, each of a type in `one`; TypeError names what else is given and where."""
    if isinstance(items, one):
        return [items]
    if isinstance(items, NOT_LISTS) or not isinstance(items, Iterable) or hasattr(items, "shape"):
        raise TypeError(f"{name}: give {wanted}, or a list of them, not {type(items).__name__}")
    listed = list(items)
    for row, item in enumerate(listed):
        if not isinstance(item, one):
            raise TypeError(f"{name}[{row}]: give {wanted}, not {type(item).__name__}")
    return listed


def as_texts(texts: Texts) -> list[str]:
    """A list of texts; one string is one text.

    Raises:
        TypeError: an item is not a string.
        ValueError: an item has half of a surrogate pair, which no encoding can write.
    """
    if not isinstance(texts, str) and getattr(getattr(texts, "dtype", None), "kind", "") in ("U", "O"):
        texts = list(texts)  # a column of NumPy or pandas
    listed = _listed(texts, str, "texts", "a str")
    for row, text in enumerate(listed):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"texts[{row}]: character {error.start} is half of a surrogate pair; remove it") from None
    return listed


def as_pictures(images: Pictures) -> list[Picture]:
    """A list of PIL pictures and paths; the paths are not opened yet.

    Raises:
        TypeError: an item is neither a PIL picture nor a path; Image.fromarray makes one of a NumPy array.
    """
    kinds = "a PIL picture (Image.fromarray makes one of an array) or a path"
    return _listed(images, (Image.Image, str, os.PathLike), "images", kinds)


def open_picture(image: Picture) -> Image.Image:
    """The picture, opened if it is a path.

    Raises:
        DataError: the file is missing, or PIL cannot read it.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        with images.open_picture(fetch(place(image))) as opened:
            opened.load()
            return opened
    except Exception as error:  # PIL's decoders raise many classes on damaged files
        raise DataError(f"{image or 'an empty path'}: cannot be read as a picture: {first_line(error)}") from None


def to_pixels(image: Picture, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Pixels (3, S, S) of a picture or a file; DataError names a file that cannot be read."""
    opened = open_picture(image)
    try:
        return transform(opened)
    except DataError as error:
        name = getattr(image, "filename", "") or "a PIL picture" if isinstance(image, Image.Image) else image
        raise DataError(f"{name}: {error}") from None


def over_templates(tower: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Embeddings (B, E) of texts, each in one form, ids (B, T), or in K templates, ids (B, K, T).

    Of K forms it is the mean of the L2-normalised embeddings (prompt ensembling: CLIP, arXiv 2103.00020, section
    3.1.4), in float32 at least, with the mean length of the K, so that a plain mse has the scale that it has without
    templates.

    >>> import torch
    >>> over_templates(lambda ids: ids.float(), torch.tensor([[[3, 4], [4, 3]]]))
    tensor([[3.5355, 3.5355]])
    """
    if ids.dim() == 2:
        return tower(ids)
    each_BKE = tower(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
    if each_BKE.dtype.itemsize < torch.float32.itemsize:
        each_BKE = each_BKE.float()
    length_B1 = each_BKE.norm(dim=-1).mean(1, keepdim=True)
    return F.normalize(F.normalize(each_BKE, dim=-1).mean(1), dim=-1) * length_B1


def texts_of_a_batch(device: torch.device) -> int:
    """Texts that a student encodes at once; larger batches are slower on the CPU (benchmarks/embed.py)."""
    return 32 if device.type == "cpu" else 256


def embed_by_length(
    items: Sequence[Any],
    lengths: Sequence[int],
    encode: Callable[[Sequence[Any]], Tensor],
    width: int,
    batch_size: int,
    dims: int | None = None,
) -> Tensor:
    """Encode items in batches of similar length, so that little is padded.

    Args:
        items: N texts, token ids or pictures.
        lengths: the length of each item, in any unit; equal lengths keep their order.
        encode: a batch of B items to (B, D).
        width: D.
        batch_size: items per batch. The longest items come first, so that too large a batch fails at once.
        dims: only the first so many numbers of each embedding; None: D.
    Returns:
        L2-normalised rows (N, dims) in the order of `items`, float32 on the CPU.
    Raises:
        ValueError: batch_size is no whole number of at least 1, or dims none between 1 and D.
    """
    dims = width if dims is None else dims
    if not isinstance(dims, int) or not 1 <= dims <= width:
        raise ValueError(f"dims: must be a whole number between 1 and {width}, the embeddings' width, not {dims!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: must be a whole number of at least 1, not {batch_size!r}")
    order = sorted(range(len(items)), key=lambda row: -lengths[row])
    out_ND = torch.zeros(len(items), dims)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        out_ND[rows] = F.normalize(encode([items[row] for row in rows])[:, :dims].float(), dim=-1).cpu()
    return out_ND


def similarity(text_ND: Tensor, image_MD: Tensor) -> Tensor:
    """Cosines (N, M) of embeddings, float32 on the CPU; one of (D,) is one row.

    Raises:
        ValueError: the embeddings have different widths, or more than two dimensions.
    """
    sides = [torch.atleast_2d(part.detach().float().cpu()) for part in (text_ND, image_MD)]
    if {side.dim() for side in sides} != {2} or sides[0].shape[1] != sides[1].shape[1]:
        shapes = " and ".join(str(tuple(side.shape)) for side in sides)
        raise ValueError(f"text and image: give embeddings of one width, (N, D) and (M, D), not {shapes}")
    text_ND, image_MD = (F.normalize(side, dim=-1) for side in sides)
    return text_ND @ image_MD.T
