"""A sheet of pictures that were found: a row a query, as one PNG."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from mclip_kit.config.model import AS_SEEN
from mclip_kit.data.images import container, open_file, open_picture
from mclip_kit.data.pictures import to_rgb
from mclip_kit.evaluate.report import fonts
from mclip_kit.files import unescaped
from mclip_kit.search.search import Hit
from mclip_kit.storage import exists, place

SIDE, MARGIN, TITLE = 160, 8, 22  # pixels
MOST = 50  # rows and columns


def open_hit(file: str) -> Image.Image:
    """A found picture, in RGB and upright.

    Raises:
        DataError: it is no picture any more.
        OSError: it cannot be read.
    """
    return to_rgb(open_raw(file), AS_SEEN)


def open_raw(file: str) -> Image.Image:
    """A found picture as its file has it; OSError if it cannot be read."""
    path = place(file) if exists(container(place(file))) else Path(unescaped(file))
    with open_file(path) as handle, open_picture(handle) as picture:
        picture.load()
        return picture


def write_sheet(found: Sequence[tuple[str, Sequence[Hit]]], path: Path | None = None) -> Path:
    """Write a sheet.

    Args:
        found: query and its hits, a row each; the first 50 of both are shown.
        path: a .png; None: a new file in the folder for temporary files.
    Returns:
        The path.
    """
    found = [(query, hits[:MOST]) for query, hits in found[:MOST]]
    columns = max((len(hits) for _, hits in found), default=1)
    step = SIDE + MARGIN
    sheet = Image.new("RGB", (MARGIN + step * columns, (step + TITLE) * len(found)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (query, hits) in enumerate(found):
        top = row * (step + TITLE)
        font, title = fonts.pick_some(" ".join(query.split()), 14)
        draw.text((MARGIN, top + 4), fonts.visible(title), "black", font)
        for column, hit in enumerate(hits):
            place = (MARGIN + column * step, top + TITLE)
            try:
                small = ImageOps.contain(open_hit(hit.file), (SIDE, SIDE))
            except Exception:  # PIL's decoders raise many classes; the file may have vanished
                small = Image.new("RGB", (SIDE, SIDE), "lightgrey")
            sheet.paste(small, place)
    if path is None:
        with tempfile.NamedTemporaryFile(prefix="search-", suffix=".png", delete=False) as file:
            path = Path(file.name)
    sheet.save(path)
    return path
