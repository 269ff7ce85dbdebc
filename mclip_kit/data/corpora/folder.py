"""Reads a folder of pictures: with captions in a .txt next to each, or in a folder for each class, like ImageNet."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from mclip_kit.config.yaml import Section
from mclip_kit.data.corpora import Content, Corpus, Row, parse_options
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.images import SUFFIXES
from mclip_kit.data.languages import normalize_language
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.progress import tqdm


class Options(Section):
    """Options of this reader."""

    split: str = Field("", description="Of all rows; empty: drawn by the corpus's `splits`.")
    language: str | None = Field(None, description="Of the captions; None: the corpus's first language.")
    kind: Literal["auto", "captions", "classes"] = Field(
        "auto",
        description="`captions`: a .txt with the picture's name has a caption in each line; `classes`: a folder for "
        "each class; `auto`: captions if there are any.",
    )


def read(corpus: Corpus, source: Source) -> Content:
    """One row for each picture, sorted by name, so that the order is the same on every system.

    Raises:
        DataError: there are no pictures, or they are neither captioned nor in class folders.
    """
    chosen = parse_options(corpus, Options)
    root = source.root or source.images
    if root is None or not root.is_dir():
        raise DataError(f"{root or '--source DIR'}: the folder of the pictures is needed, unpacked; {corpus.obtain}")
    language = normalize_language(chosen.language) if chosen.language else corpus.languages[0]
    known = [*corpus.languages, *corpus.caption_languages]
    if language not in known:
        raise RecipeError(f"options of reader folder: language: {language}; there are {', '.join(known)}")
    pictures, texts = _find_files(root)
    if not pictures:
        raise DataError(f"{root}: no pictures in it ({', '.join(sorted(SUFFIXES))}); {corpus.obtain}")
    captioned = [name for name in pictures if _caption_file(name) in texts]
    if chosen.kind == "classes" or (chosen.kind == "auto" and not captioned):
        return Content(_classes(root, pictures, chosen.split))
    if not captioned:
        raise DataError(f"{root}: no picture has a .txt, such as {_caption_file(pictures[0])}; {corpus.obtain}")
    if len(captioned) < len(pictures):
        tqdm.write(f"{root}: left out {len(pictures) - len(captioned):,} pictures that have no .txt with their name")
    return Content(_captions(root, captioned, language, chosen.split))


def _find_files(root: Path) -> tuple[list[str], set[str]]:
    """The paths of pictures and of .txt files, relative to the root."""
    pictures, texts, skipped = [], set(), []
    for entry in tqdm(_walk(root), "looking for pictures", leave=False, unit="file", dynamic_ncols=True):
        name = os.path.relpath(entry.path, root).replace(os.sep, "/")
        ending = os.path.splitext(name)[1].lower()
        if entry.is_symlink() and (entry.is_dir() or not Path(entry.path).resolve().is_relative_to(root.resolve())):
            skipped.append(name)
        elif ending in SUFFIXES:
            pictures.append(name)
        elif ending == ".txt":
            texts.add(name)
    if skipped:
        tqdm.write(f"{root}: skipped {len(skipped):,} links to folders or to files outside it, such as {skipped[0]}")
    return pictures, texts


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder; links to folders are not followed, but listed too."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue  # files that systems add, such as macOS's ._NAME.jpg
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry


def _caption_file(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"


def _captions(root: Path, pictures: list[str], language: str, split: str) -> Iterator[Row]:
    for name in pictures:
        lines = list(File(root / _caption_file(name)).lines()) or [""]  # an empty file counts as one empty text
        texts = [(language, line) for line in lines]
        yield Row(split=split, texts=texts, image=name, file=str((root / name).absolute()))


def _classes(root: Path, pictures: list[str], split: str) -> Iterator[Row]:
    """Rows of pictures in class folders, which must all be in the same parent folder, at any depth."""
    above = Counter(os.path.dirname(os.path.dirname(name)) for name in pictures if "/" in name)
    base = above.most_common(1)[0][0] if above else ""
    outside = next((name for name in pictures if "/" not in name or os.path.dirname(os.path.dirname(name)) != base), "")
    if outside:
        raise DataError(
            f"{root / outside}: a picture outside the class folders of {root / base}; move it away, or give as "
            "--source the folder that has only class folders"
        )
    if len({os.path.dirname(name) for name in pictures}) == 1:
        raise DataError(
            f"{root / os.path.dirname(pictures[0])}: holds all pictures; sort them into a folder for each class"
        )
    for name in pictures:
        stratum = os.path.basename(os.path.dirname(name))
        image = f"{stratum}/{os.path.basename(name)}"
        yield Row(split=split, texts=[], image=image, file=str((root / name).absolute()), stratum=stratum)
