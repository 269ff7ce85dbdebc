"""Pictures as RGB: what files say besides their colours, for the settings of a model."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mclip_kit.config.model import AS_OPEN_CLIP, AS_SEEN, Pictures
from mclip_kit.data.captions import read_captions
from mclip_kit.data.pictures import ORIENTATION, to_rgb
from mclip_kit.errors import DataError

RED, WHITE = (255, 0, 0), (255, 255, 255)
GRADIENT = np.linspace(0, 255, 48).round().astype(np.uint8).reshape(6, 8)


def reread(picture: Image.Image, kind: str = "png", **options: Any) -> Image.Image:
    """The picture as a file has it."""
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return Image.open(io.BytesIO(written.getvalue()))


def see_through(mode: str) -> Image.Image:
    """Red or black, transparent on the left."""
    picture = Image.new("RGBA", (8, 6), (*RED, 255))
    picture.paste((*RED, 0), (0, 0, 4, 6))
    if mode == "P":
        return picture.quantize(4)
    return picture.convert(mode)


KINDS = [(mode, kind) for mode in ("RGBA", "LA") for kind in ("png", "webp", "tiff")] + [("P", "png")]


@pytest.mark.parametrize(("mode", "kind"), KINDS)
def test_what_is_transparent_is_white(mode, kind):
    found = to_rgb(reread(see_through(mode), kind, **({"lossless": True} if kind == "webp" else {})), AS_SEEN)
    assert found.mode == "RGB"
    assert found.getpixel((1, 1)) == WHITE
    assert found.getpixel((6, 1)) == (RED if mode != "LA" else (76, 76, 76))


def test_half_transparent_is_mixed_with_white():
    assert to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 127)), AS_SEEN).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(("mode", "key", "colour"), [("L", 7, 7), ("RGB", RED, RED), ("P", 0, 0), ("1", 0, 0)])
def test_one_colour_that_a_png_says_is_transparent_is_white(mode, key, colour):
    picture = Image.new(mode, (2, 2), colour)
    assert to_rgb(reread(picture, transparency=key), AS_SEEN).getpixel((0, 0)) == WHITE


def test_a_transparent_grey_of_16_bits_is_white():
    picture = Image.fromarray(np.array([[100, 65535]], np.uint16))
    picture.info["transparency"] = 100
    assert [to_rgb(picture, AS_SEEN).getpixel((x, 0)) for x in range(2)] == [WHITE, WHITE]
    del picture.info["transparency"]
    assert to_rgb(picture, AS_SEEN).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_as_pil_does(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = reread(Image.fromarray(GRADIENT).convert("RGB"), exif=exif)
    upright = np.asarray(to_rgb(picture, AS_SEEN))
    assert np.array_equal(upright, np.asarray(ImageOps.exif_transpose(picture)))
    assert np.array_equal(to_rgb(picture, AS_OPEN_CLIP), picture)
    assert np.array_equal(to_rgb(picture.convert("L"), AS_SEEN), upright)  # converted by the user


def test_a_damaged_exif_block_is_no_reason_to_leave_a_picture_out():
    picture = Image.fromarray(GRADIENT)
    for block in (b"Exif\x00\x00nonsense", b"\xff" * 9, b"Exif\x00\x00MM\x00*\x00\x00\xff\xff"):
        picture.info["exif"] = block
        assert np.array_equal(to_rgb(picture, AS_SEEN), picture.convert("RGB"))


@pytest.mark.parametrize(
    "deep",
    [
        reread(Image.fromarray(GRADIENT.astype(np.uint16) * 257)),
        reread(Image.fromarray(GRADIENT.astype(np.uint16) * 257), "tiff"),
        Image.fromarray(GRADIENT.astype(">u2") * 257),
        Image.fromarray(GRADIENT.astype(np.int32) * 257),
        Image.fromarray(GRADIENT.astype(np.int32)),
        Image.fromarray(GRADIENT.astype(np.float32)),
        Image.fromarray(GRADIENT.astype(np.float32) / 255),
        Image.fromarray(GRADIENT.astype(np.float32) * 257),
    ],
    ids=["png 16", "tiff 16", "big-endian", "int32", "int32 of 8 bits", "float of 8 bits", "float to 1", "float of 16"],
)
def test_grey_of_many_bits_keeps_its_shades(deep):
    assert np.array_equal(to_rgb(deep, AS_SEEN), Image.fromarray(GRADIENT).convert("RGB"))


def test_16_bits_are_rounded_not_cut():
    values = np.array([[0, 128, 129, 65535]], np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values), AS_SEEN))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    picture = reread(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {})
    )
    assert picture.n_frames == 2  # type: ignore[attr-defined]
    assert to_rgb(picture, AS_SEEN).getpixel((0, 0)) == RED


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "RGB", "P"])
@pytest.mark.parametrize("how", [AS_SEEN, AS_OPEN_CLIP], ids=["as seen", "as open_clip"])
def test_other_modes_are_what_pil_makes_of_them(mode, how):
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).convert(mode)
    assert np.array_equal(to_rgb(picture, how), picture.convert("RGB"))


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk_files_have_their_colours(kind):
    picture = reread(Image.new("RGB", (8, 8), RED).convert("CMYK"), kind)
    assert picture.mode == "CMYK"
    assert np.abs(np.asarray(to_rgb(picture, AS_SEEN)).astype(int) - RED).max() <= 3


def test_open_clips_way_is_its_own():
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    for picture in (see_through("RGBA"), see_through("P"), see_through("LA"), deep):
        assert np.array_equal(to_rgb(picture, AS_OPEN_CLIP), picture.convert("RGB"))
    for key, value in AS_OPEN_CLIP.model_dump().items():  # each key alone
        one = Pictures.model_validate({key: value})
        assert (to_rgb(see_through("RGBA"), one).getpixel((1, 1)) == RED) == (key == "alpha")
        assert (to_rgb(deep, one).getpixel((4, 4)) == WHITE) == (key == "depth")


def test_what_cannot_be_rgb_is_an_error():
    with pytest.raises(DataError, match="it has no pixels"):
        to_rgb(Image.new("L", (0, 2)), AS_SEEN)


def test_people_see_pictures_of_a_prepared_folder_on_white(tmp_path):
    (tmp_path / "pictures").mkdir()
    see_through("RGBA").save(tmp_path / "pictures" / "a.png")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "images.tsv").write_text("image\tgroup\tstratum\tfile\na.png\t0\tall\t\n")
    (tmp_path / "captions.tsv").write_text("image\tlanguage\tsplit\tcaption\na.png\ten\ttest\tred\n")
    captions = read_captions(tmp_path)
    assert captions.picture(0).getpixel((1, 1)) == WHITE
    assert captions.open(0).mode == "RGBA"
