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
from torch import nn

from mclip_kit import layout
from mclip_kit.data.captions import Captions
from mclip_kit.data.transforms import read_pixels
from mclip_kit.errors import DataError
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
    model: MultilingualClip, old: str, older: MultilingualClip | Clip, captions: Captions, split: str, data: Path
) -> SameImages:
    """Compare the image vectors of a model with those of an older one, on the pictures of a split.

    Args:
        model: the model.
        old: the older model's name, for the sentence.
        older: the older model, as `open_older` gives it.
        data: the corpus, for the sentence.
    Raises:
        DataError: no picture of the split can be read.
    """
    sides = [_image_side(model), _image_side(older)]
    pictures, differ, largest, unreadable = 0, 0, 0.0, 0
    rows = captions.gallery(split)
    for start in tqdm(range(0, len(rows), BATCH), desc="image vectors", unit="batch", leave=False, disable=None):
        found = [_vectors(*side, captions, rows[start : start + BATCH], model.device) for side in sides]
        (ours_ND, bad), (theirs_ND, other_bad) = found
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


def _vectors(
    clip: Clip, tower: nn.Module, projector: nn.Module, captions: Captions, rows: np.ndarray, device: torch.device
) -> tuple[np.ndarray, list[int]]:
    """L2-normalised vectors (N, D), and the numbers of pictures that could not be read."""
    pixels_NCHW, unreadable = read_pixels(captions, rows, clip.transform, clip.preprocess)
    with evaluating(tower), evaluating(projector):
        vectors_ND = F.normalize(projector(tower(pixels_NCHW.to(device))).float(), dim=-1)
    return np.asarray(vectors_ND.cpu().numpy()), list(unreadable)
