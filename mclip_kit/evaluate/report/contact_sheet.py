"""retrieval.png: what a model finds in many languages. One row per query, the best pictures from left to right."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from mclip_kit.data.languages import language_name
from mclip_kit.evaluate.gallery import QueryResult
from mclip_kit.evaluate.report import fonts
from mclip_kit.files import write_whole

WIDTH, MARGIN = 1400, 56  # all lengths are pixels
HEADER, ROW, FOOTER = 150, 216, 100
SIDE, GAP, RADIUS = 164, 30, 14
PICTURES = 5 * SIDE + 4 * GAP  # more than five pictures shrink into the same width
TEXT = WIDTH - 2 * MARGIN - PICTURES - 36
RING, RING_GAP = 5, 4  # the frame of a right picture, and the white space inside the frame
RIGHT, INK, SOFT, FAINT, LINE = "#16a34a", "#111827", "#6b7280", "#9ca3af", "#e5e7eb"
LEADING = 1.32
NO_FONT = "(no font for this script)"

# A line may break at spaces and around a Han or kana character, but not before closing punctuation.
HAN, OPENING = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff", "「『（《【"
CLOSING = "、。，．！？；：」』）》】ー々っゃゅょッャュョ"
PIECE = re.compile(rf"[{OPENING}]*(?:[{HAN}]|[^\s{HAN}{OPENING}]+)[{CLOSING}]*\s*|\S\s*")


def draw(rows: Sequence[QueryResult], path: Path, title: str, footer: str) -> None:
    """Write the sheet to `path` as PNG; right pictures have a green frame."""
    canvas = Image.new("RGB", (WIDTH, HEADER + ROW * len(rows) + FOOTER), "white")
    columns = max((len(row.pictures) for row in rows), default=0)
    _header(canvas, title, columns)
    for i, row in enumerate(rows):
        _query(ImageDraw.Draw(canvas), row, HEADER + i * ROW)
        for j, (picture, right) in enumerate(zip(row.pictures, row.right, strict=True)):
            _picture(canvas, picture, right, *place(i, j, columns))
    _footer(ImageDraw.Draw(canvas), footer, canvas.height - FOOTER)
    with write_whole(path) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)


def place(row: int, column: int, columns: int) -> tuple[int, int, int]:
    """Left, top and side of one picture, in pixels.

    Args:
        columns: the number of pictures in a row.
    """
    side = min(SIDE, (PICTURES + GAP) // columns - GAP)
    left = WIDTH - MARGIN - PICTURES + column * (side + GAP)
    return left, HEADER + row * ROW + (ROW - side) // 2, side


def _header(canvas: Image.Image, title: str, columns: int) -> None:
    """The title, a legend at the right, and the ranks above the pictures."""
    pen = ImageDraw.Draw(canvas)
    legend = _label(pen, WIDTH - MARGIN, 80, "right picture", SOFT, anchor="rs")
    left = WIDTH - MARGIN - round(legend) - 30
    canvas.paste(RIGHT, (left, 64), _rounded(20, 6))
    canvas.paste("white", (left + 3, 67), _rounded(14, 3))
    font, lines = fit(*fonts.pick_some(" ".join(title.split()), 40), left - MARGIN - 40, 50, 24)
    pen.text((MARGIN, 82), fonts.visible(lines[0]), INK, font, anchor="ls")
    for column in range(columns):
        x, _, side = place(0, column, columns)
        _label(pen, x + side / 2, HEADER - 2, str(column + 1), FAINT, anchor="ms")


def _query(pen: ImageDraw.ImageDraw, row: QueryResult, top: int) -> None:
    """The language in grey and the query below it, centred in the height of the row."""
    query = " ".join(row.query.split())
    font = fonts.pick(query, row.language, 32)
    note = "" if font else NO_FONT
    font, lines = fit(font, query, TEXT, SIDE - 14, 18) if font else (fonts.default(20), [])
    leading = round(font.size * LEADING)
    y = top + (ROW - 28 - leading * len(lines)) / 2 + 16
    x: float = MARGIN
    name = language_name(row.language)
    for label, colour in ((name, SOFT), (row.language, FAINT), (note, FAINT)):
        x += _label(pen, x, y, label, colour) + 8 if label else 0
    # The lines of a right-to-left text are aligned on the right; their block begins where every other text begins.
    lengths = [length(line, font) for line in lines]
    flush = fonts.is_right_to_left(query)
    for i, line in enumerate(lines):
        indent = max(lengths) - lengths[i] if flush else 0
        pen.text((MARGIN + indent, y + 12 + leading * (i + 0.8)), fonts.visible(line), INK, font, anchor="ls")


def _picture(canvas: Image.Image, picture: np.ndarray, right: bool, x: int, y: int, side: int) -> None:
    """One picture (S, S, 3) with rounded corners: a green frame when it is right, else a thin line."""
    edges = [(RING_GAP + RING, RIGHT), (RING_GAP, "white"), (1, LINE)] if right else [(1, LINE)]
    for grow, colour in edges:
        canvas.paste(colour, (x - grow, y - grow), _rounded(side + 2 * grow, RADIUS + grow))
    small = Image.fromarray(picture).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(small, (x, y), _rounded(side, RADIUS))


def _footer(pen: ImageDraw.ImageDraw, footer: str, top: int) -> None:
    """A thin line and, in small grey letters, the footer: authors and licences."""
    pen.line((MARGIN, top + 8, WIDTH - MARGIN, top + 8), LINE)
    font, lines = fit(*fonts.pick_some(" ".join(footer.split()), 15), WIDTH - 2 * MARGIN, 60, 11)
    for i, line in enumerate(lines):
        pen.text((MARGIN, top + 42 + round(font.size * LEADING) * i), fonts.visible(line), FAINT, font, anchor="ls")


def _label(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: str, anchor: str = "ls") -> float:
    """Draw one small line of text at its baseline; return its length in pixels."""
    font, text = fonts.pick_some(text, 17)
    pen.text((x, y), fonts.visible(text), colour, font, anchor=anchor)
    return length(text, font)


def fit(font: FreeTypeFont, text: str, width: float, height: float, least: int) -> tuple[FreeTypeFont, list[str]]:
    """The largest font, from its size down to `least`, in which the wrapped text fits the box; and the lines.

    If even `least` is too large, the text is cut.
    """
    room = 1
    for size in range(int(font.size), least - 1, -2):
        font, room = font.font_variant(size=size), max(1, int(height / (size * LEADING)))
        lines = wrap(text, font, width)
        if len(lines) <= room and all(length(line, font) <= width for line in lines):
            return font, lines
    dots = "…" if fonts.covers(font, "…") else ""
    cut = [*lines[: room - 1], " ".join(lines[room - 1 :])]
    return font, [shorten(line, font, width, dots) for line in cut]


def wrap(text: str, font: FreeTypeFont, width: float) -> list[str]:
    """Fill lines greedily; a piece that is wider than a line gets a separate line."""
    lines = [""]
    for piece in PIECE.findall(text):
        if lines[-1] and length(lines[-1] + piece, font) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def shorten(line: str, font: FreeTypeFont, width: float, dots: str) -> str:
    """Cut the end of a line that is too long."""
    kept = line
    while length(line, font) > width and kept:
        kept = kept[:-1]
        line = kept.rstrip() + dots
    return line


def length(line: str, font: FreeTypeFont) -> float:
    """The advance of a line in pixels, without the space at its end."""
    return font.getlength(fonts.visible(line.rstrip()))


@cache
def _rounded(side: int, radius: int) -> Image.Image:
    """A mask (side, side) with smooth corners."""
    mask = Image.new("L", (side * 4, side * 4))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side * 4 - 1, side * 4 - 1), radius * 4, fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)
