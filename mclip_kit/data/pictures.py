"""Pictures as a CLIP's transform takes them: 8 bits, RGB. Every picture that a model sees comes through `to_rgb`."""

import numpy as np
from PIL import Image

from mclip_kit.config.model import Pictures
from mclip_kit.errors import DataError, first_line

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what makes the picture upright."""
LONGEST = 250
"""How many times as long as wide a picture can be; resizing a longer one would need gigabytes."""
BAND = 1 << 22  # pixels that are converted at once
STEP = 257  # 16 bits to 8: 65535 becomes 255


def to_rgb(picture: Image.Image, how: Pictures) -> Image.Image:
    """A picture in RGB; of an animation the frame that is open, which is the first one of a file.

    >>> from PIL import Image
    >>> from mclip_kit.config.model import Pictures
    >>> hidden = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    >>> to_rgb(hidden, Pictures(alpha="white")).getpixel((0, 0))
    (255, 255, 255)

    Raises:
        DataError: the picture has no pixels, cannot be decoded, or PIL has no way from its mode to RGB.
    """
    try:
        picture.load()
        turn = TURNS.get(_orientation(picture)) if how.exif == "apply" else None
        if how.depth == "scale":
            picture = _eight_bits(picture)
        rgb = _on_white(picture) if how.alpha == "white" and picture.has_transparency_data else picture.convert("RGB")
    except Exception as error:  # PIL's decoders raise many classes on damaged files
        raise DataError(f"not a readable picture: {first_line(error)}") from None
    if 0 in rgb.size:
        raise DataError("not a readable picture: it has no pixels")
    if max(rgb.size) > LONGEST * min(rgb.size):  # the shorter side is resized to the model's pixels
        raise DataError(
            f"not a readable picture: {rgb.width} x {rgb.height}, more than {LONGEST} times as long as wide"
        )
    if turn is None:
        return rgb
    upright = rgb.transpose(turn)
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # it would be turned again
        upright.info.pop(name, None)
    return upright


def _on_white(picture: Image.Image) -> Image.Image:
    """A transparent picture on white, in RGB; some rows at a time, as a large one takes its memory several times."""
    seen = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    rgb = Image.new("RGB", seen.size)
    for top, bottom in _bands(*seen.size):
        part = seen.crop((0, top, seen.width, bottom))
        rgb.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), (0, top))
    return rgb


def _bands(width: int, height: int) -> list[tuple[int, int]]:
    """First and last row of parts of a picture."""
    rows = max(1, BAND // max(1, width))
    return [(top, min(height, top + rows)) for top in range(0, height, rows)]


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation; 1, upright, if there is none or the EXIF block is damaged."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # as above: a damaged block is no reason to leave a picture out
        return 1


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits as 8 bits; other pictures as they are.

    16-bit values are divided by 257, as the PNG specification says. Modes I and F do not say their range: values up to
    255 are 8-bit ones, higher ones 16-bit; values of F up to 1 are shares of white.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture
    values_HW = np.asarray(picture)
    top = float(values_HW.max(initial=0))
    if picture.mode.startswith("I;16") or top > 255:
        scale = 1 / STEP
    else:
        scale = 255.0 if picture.mode == "F" and top <= 1 else 1.0
    grey_HW = np.empty(values_HW.shape, np.uint8)
    for first, last in _bands(*picture.size):
        part_HW = values_HW[first:last].astype(np.float64)
        grey_HW[first:last] = np.nan_to_num(part_HW * scale).round().clip(0, 255).astype(np.uint8)
    hidden = picture.info.get("transparency")
    if not isinstance(hidden, int):
        return Image.fromarray(grey_HW)
    alpha_HW = np.where(values_HW == hidden, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey_HW, alpha_HW], -1), "LA")
