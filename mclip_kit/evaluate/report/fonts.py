"""Find a font that has the glyphs of a text, and put the text into the order in which it is drawn.

No font needs to be installed. The lookup order is: Noto Sans CJK from the package `noto-cjk-sans-otc`, DejaVu Sans from
inside matplotlib, Pillow's built-in Aileron, then the fonts of the system. The fonts from packages come first so that a
picture looks the same on every machine.
"""

import importlib.util
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import ImageFont, features
from PIL.ImageFont import FreeTypeFont, Layout

RAQM = features.check("raqm")  # Pillow includes Raqm, but Raqm needs FriBiDi, which many systems lack
BUNDLED = (
    ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf"),
)
SYSTEM = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "${WINDIR}/Fonts",
)
OTHER_STYLES = re.compile("bold|black|heavy|thin|light|medium|italic|oblique|mono|condensed|emoji|lastresort")
CJK_FACES = {"ja": 0, "ko": 1, "zh": 2, "zh-tw": 3, "zh-hant": 3, "zh-hk": 4}  # the order inside Noto's collections
KINDS = {"L": "L", "EN": "L", "AN": "L", "R": "R", "AL": "R"}  # Unicode's bidirectional classes; all others are neutral
BRACKETS = str.maketrans("()[]{}«»<>", ")(][}{»«><")


def pick(text: str, language: str, size: int) -> FreeTypeFont | None:
    """The first font that has every glyph of `text`, or None."""
    drawn = visible(text)
    if not RAQM and any(unicodedata.category(c).startswith("M") for c in drawn):
        return None  # without shaping, marks are drawn in the wrong place
    return next((font for font in candidates(language, size) if covers(font, drawn)), None)


def pick_some(text: str, size: int) -> tuple[FreeTypeFont, str]:
    """A font for `text`, and the text; if no font has all glyphs, the default font, and `?` for what it lacks."""
    font = pick(text, "en", size)
    if font is not None:
        return font, text
    font = default(size)
    return font, "".join(c if covers(font, c) else "?" for c in text)


def candidates(language: str, size: int) -> Iterator[FreeTypeFont]:
    """The fonts that can be opened, in lookup order."""
    yield from _open(bundled_files(), language, size)
    yield default(size)
    yield from _open(system_files(), language, size)


def default(size: int) -> FreeTypeFont:
    """Aileron, which is part of Pillow: basic Latin letters, always available."""
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)
    return font


def covers(font: FreeTypeFont, text: str) -> bool:
    """Whether no character of `text` looks like a code point that no font has (the tofu box)."""
    # The basic layout draws one glyph per character; Raqm would decompose a missing letter and hide the gap.
    basic = font.font_variant(layout_engine=Layout.BASIC)
    missing = _look(basic, "\U0010ffff")
    return all(_look(basic, c) != missing for c in set(text) if unicodedata.category(c) not in ("Zs", "Cf"))


def bundled_files() -> list[Path]:
    """Font files inside installed packages; the packages are not imported."""
    specs = [(importlib.util.find_spec(package), file) for package, file in BUNDLED]
    files = [Path(spec.origin).parent / file for spec, file in specs if spec and spec.origin]
    return [file for file in files if file.is_file()]


@cache
def system_files() -> list[Path]:
    """Regular fonts in the usual folders of the system, Noto Sans first."""
    folders = [Path(os.path.expandvars(folder)).expanduser() for folder in SYSTEM]
    files = [file for folder in folders if folder.is_dir() for file in folder.rglob("*.[ot]t[fc]")]
    regular = [file for file in files if not OTHER_STYLES.search(file.stem.lower())]
    return sorted(regular, key=lambda file: (not file.stem.startswith("NotoSans"), file.name))


def is_right_to_left(text: str) -> bool:
    """Whether `text` has Hebrew or Arabic letters; such a text is drawn from right to left."""
    return any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)


def visible(text: str) -> str:
    """`text` as Pillow needs it: unchanged for Raqm; without Raqm, letters are joined and reordered here."""
    if RAQM:
        return f"\u200f{text}" if is_right_to_left(text) else text  # the mark keeps a line that begins with Latin
    if is_right_to_left(text):
        text = _reorder(_join("".join(c for c in text if unicodedata.category(c) != "Mn")))
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def _reorder(text: str) -> str:
    """Reverse a right-to-left line; numbers and Latin phrases inside it keep their order."""
    kinds = "".join(KINDS.get(unicodedata.bidirectional(c), "n") for c in text)
    runs = [text[run.start() : run.end()] for run in re.finditer("L(?:n*L)*|.", kinds)]
    return "".join(run if len(run) > 1 else run.translate(BRACKETS) for run in reversed(runs))


def _join(text: str) -> str:
    """Arabic letters as Unicode's presentation forms: isolated, initial, medial or final."""
    forms = _presentation_forms()
    letters = re.findall("ل[آأإا]|.", text)  # lam and alef are always written as one letter
    shapes = [forms.get(letter, {}) for letter in letters]
    joined = []
    for i, (letter, shape) in enumerate(zip(letters, shapes, strict=True)):
        before = "final" in shape and i > 0 and "initial" in shapes[i - 1]
        after = "initial" in shape and i + 1 < len(shapes) and "final" in shapes[i + 1]
        name = {(0, 0): "isolated", (0, 1): "initial", (1, 0): "final", (1, 1): "medial"}[before, after]
        joined.append(shape.get(name, letter))
    return "".join(joined)


@cache
def _presentation_forms() -> dict[str, dict[str, str]]:
    """{"ب": {"initial": "ﺑ", ...}, ...}, read from Unicode's own compatibility decompositions."""
    table: dict[str, dict[str, str]] = {}
    for shaped in map(chr, (*range(0xFB50, 0xFC00), *range(0xFE70, 0xFEFD))):
        if decomposition := unicodedata.decomposition(shaped):
            form, *codes = decomposition.split()
            letter = "".join(chr(int(code, 16)) for code in codes)
            table.setdefault(letter, {})[form.strip("<>")] = shaped
    return table


def _look(font: FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _open(files: list[Path], language: str, size: int) -> Iterator[FreeTypeFont]:
    language = language.lower().replace("_", "-")
    face = CJK_FACES.get(language, CJK_FACES.get(language.split("-")[0], 0))
    for file in files:
        with suppress(OSError):  # a system folder may hold files that FreeType cannot open or scale
            index = face if re.match("Noto(Sans|Serif)CJK-", file.name) else 0
            yield ImageFont.truetype(file, size, index=index, layout_engine=Layout.RAQM if RAQM else Layout.BASIC)
