"""Whether a model gives pictures the vectors that an older model, or the CLIP it was made from, gives them.

If it does, bit for bit, vectors that were computed with the older one are searched with the new one's texts, and no
picture has to be embedded again. Both towers are run here; nothing is read from the feature cache.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_kit import layout
from mclip_kit.data.captions import Captions
from mclip_kit.data.readers import read_ahead, reader_count
from mclip_kit.data.transforms import read_pixels
from mclip_kit.errors import DataError
from mclip_kit.features.job import MANY
from mclip_kit.models.clip import Clip, build_clip
from mclip_kit.models.device import auto_device
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.progress import tqdm
from mclip_kit.storage import fetch, place

BATCH = 64


@dataclass(frozen=True)
class SameImages:
    """What the comparison found.

    Attributes:
        old: the older model, as it was named.
        data: whose pictures, and which split.
        pictures: how many were compared.
        differ: how many have another vector, in any bit.
        largest: the largest difference of a number of the L2-normalised vectors; infinite for other widths.
        unreadable: how many could not be read, and were left out.
    """

    old: str
    data: str
    pictures: int
    differ: int
    largest: float
    unreadable: int

    @property
    def line(self) -> str:
        """One sentence for people."""
        left = f" ({self.unreadable} could not be read)" if self.unreadable else ""
        where = f"{self.pictures} pictures of {self.data}{left}"
        if not self.differ:
            return (
                f"Image vectors: those of {self.old}, bit for bit, on {where}; an index of vectors that was made with "
                "it is searched as it is."
            )
        return (
            f"Image vectors: {self.differ} of {where} have other vectors than {self.old} gives, by up to "
            f"{self.largest:.1e}; embed the pictures again."
        )

    def row(self, model: Path) -> dict[str, Any]:
        """A row of results.json."""
        largest = self.largest if np.isfinite(self.largest) else None
        return {"model": str(model), **asdict(self), "largest": largest}


def same_images(
    model: MultilingualClip,
    old: str,
    older: MultilingualClip | Clip,
    captions: Captions,
    split: str,
    data: Path,
    workers: int | None = None,
) -> SameImages:
    """Compare the image vectors of a model with those of an older one, on the pictures of a split.

    Args:
        model: the model.
        old: the older model's name, for the sentence.
        older: the older model, as `open_older` gives it.
        data: the corpus, for the sentence.
        workers: reader processes that decode picture files; None: as many as cores.
    Raises:
        DataError: no picture of the split can be read.
    """
    sides = [_image_side(model), _image_side(older)]
    pictures, differ, largest, unreadable = 0, 0, 0.0, 0
    rows = captions.gallery(split)
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]

    def read(part: np.ndarray) -> list[tuple[Tensor, list[int]]]:
        return [read_pixels(captions, part, clip.transform, clip.preprocess) for clip, *_ in sides]

    readers = reader_count(workers, useful=len(batches) >= MANY) if captions.pixels is None else 0
    ahead = read_ahead(read, batches, min(readers, len(batches)))
    for _, loaded in tqdm(ahead, "image vectors", len(batches), unit="batch", leave=False, disable=None):
        (pixels_NCHW, bad), (other_NCHW, other_bad) = loaded
        ours_ND, theirs_ND = (
            _vectors(tower, projector, given_NCHW, model.device)
            for (_, tower, projector), given_NCHW in zip(sides, (pixels_NCHW, other_NCHW), strict=True)
        )
        keep = np.setdiff1d(np.arange(len(ours_ND)), [*bad, *other_bad])
        unreadable += len(ours_ND) - len(keep)
        pictures += len(keep)
        if ours_ND.shape != theirs_ND.shape:
            differ, largest = pictures, np.inf
            continue
        gap_N = np.abs(ours_ND[keep] - theirs_ND[keep]).max(1, initial=0)
        differ += int((ours_ND[keep] != theirs_ND[keep]).any(1).sum())
        largest = max(largest, float(gap_N.max(initial=0)))
    if not pictures:
        raise DataError(f"{data}, {split}: no picture can be read, so image vectors cannot be compared")
    return SameImages(old, f"{data}, {split}", pictures, differ, largest, unreadable)


def open_older(old: str) -> MultilingualClip | Clip:
    """The model that others are compared with, where those run.

    Args:
        old: a model folder, or a CLIP as `build_clip` takes it: `local-dir:DIR`, or a name and a tag with a space
            between them.
    Raises:
        CheckpointError, RecipeError, MissingWeights: it cannot be loaded.
    """
    if fetch(place(old) / layout.MODEL_CONFIG).is_file():
        return load(old)
    name, _, weights = old.partition(" ")
    return build_clip(name, weights or None).to(auto_device()).eval()


def _image_side(model: MultilingualClip | Clip) -> tuple[Clip, nn.Module, nn.Module]:
    """Its CLIP, which prepares pictures, its image tower, and what follows the tower."""
    if isinstance(model, Clip):
        tower: Any = model.model.visual
        return model, tower, nn.Identity()
    return model.clip[0], model.image, model.clip_projector


def _vectors(tower: nn.Module, projector: nn.Module, pixels_NCHW: Tensor, device: torch.device) -> np.ndarray:
    """L2-normalised vectors (N, D)."""
    with evaluating(tower), evaluating(projector):
        vectors_ND = F.normalize(projector(tower(pixels_NCHW.to(device))).float(), dim=-1)
    return np.asarray(vectors_ND.cpu().numpy())
