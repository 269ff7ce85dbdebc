"""Where transformers' CLIP image processor gives the pixels of a model's transform, and what it does otherwise.

Its `pil` backend resizes as open_clip does, torchvision's does not. Both cut a picture's middle out in another way than
open_clip where the margin is 3, 7, 11, ... pixels: they round its half down, torchvision's CenterCrop rounds it up.
"""

from mclip_kit.config.model import Pictures
from mclip_kit.data.transforms import picture_size
from mclip_kit.interop.parity import SIZES
from mclip_kit.models.multilingual_clip import MultilingualClip

AS_TRANSFORMERS = Pictures(exif="ignore", alpha="white", depth="clip")
"""What CLIPImageProcessor does."""
OTHERWISE = {
    "exif": "a PIL picture is not turned by EXIF's orientation, the model turns it",
    "alpha": 'transparent pixels are white, the model sees the hidden colours; Image.open(FILE).convert("RGB") shows '
    "them to both",
    "depth": "values of 16-bit grey above 255 are white, the model scales them",
}
"""Key of `Pictures` -> what CLIPImageProcessor does otherwise."""


def same_pictures(model: MultilingualClip) -> list[str]:
    """Groups of `parity.SIZES` of which the `pil` image processor gives the model's pixels."""
    side = _side(model)
    same = [group for group, sizes in SIZES.items() if not any(cut_beside(side, *size) for size in sizes)]
    if "odd pictures" in same and model.clip[0].pictures != AS_TRANSFORMERS:
        same.remove("odd pictures")
    return same


def notes(model: MultilingualClip) -> list[str]:
    """What transformers does otherwise with pictures; a sentence each."""
    found, how, side = [], model.clip[0].pictures, _side(model)
    if side:
        found.append(
            f"Pictures: where the longer side, resized, has {side} + 3, 7, 11, ... pixels, as of a 640x427 photo at "
            "224, transformers cuts one pixel beside the model's cut; the cosine of both embeddings was 0.996 to 0.999 "
            "where it was tried. A picture that was cut to a square before has the model's embedding."
        )
    differ = [text for key, text in OTHERWISE.items() if getattr(how, key) != getattr(AS_TRANSFORMERS, key)]
    return [*found, f"Pictures: {'; '.join(differ)}."] if differ else found


def _side(model: MultilingualClip) -> int:
    """The side of the square that is cut out of a picture; 0: nothing is cut."""
    how = model.clip[0].preprocess
    cuts = (how.get("resize_mode") or "shortest") == "shortest"
    return picture_size(how)[0] if cuts else 0


def cut_beside(side: int, width: int, height: int) -> bool:
    """Whether transformers cuts another square of `side` pixels out of a picture than torchvision.

    >>> cut_beside(224, 640, 427)
    True
    """
    return side > 0 and (side * max(width, height) // min(width, height) - side) % 4 == 3
