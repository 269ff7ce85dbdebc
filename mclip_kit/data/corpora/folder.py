"""A folder of pictures: each with its captions beside, or in a folder per class, as ImageNet is."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field
from tqdm import tqdm

from mclip_kit.config.yaml import Section
from mclip_kit.data.corpora import Content, Corpus, Row, options
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.languages import normal
from mclip_kit.data.picture_ids import PICTURES
from mclip_kit.errors import DataError, RecipeError


class Options(Section):
    """What the reader takes."""

    split: str = Field("", description="Of all rows; none: drawn by the corpus's `splits`.")
    language: str | None = Field(None, description="Of the captions; none: the corpus's first.")
    kind: Literal["auto", "captions", "classes"] = Field(
        "auto",
        description="`captions`: a line a caption in a .txt of the picture's name; `classes`: a folder per class; "
        "`auto`: captions if there are any.",
    )


def read(corpus: Corpus, source: Source) -> Content:
    """A row for every picture, in the order of names, which is the same everywhere."""
    chosen = options(corpus, Options)
    root = source.root or source.images
    if root is None or not root.is_dir():
        raise DataError(f"{root or '--source DIR'}: the pictures' folder is needed, unpacked; {corpus.obtain}")
    language = normal(chosen.language) if chosen.language else corpus.languages[0]
    known = [*corpus.languages, *corpus.caption_languages]
    if language not in known:
        raise RecipeError(f"options of reader folder: language: {language}; there are {', '.join(known)}")
    pictures, texts = _look(root)
    if not pictures:
        raise DataError(f"{root}: no pictures in it ({', '.join(sorted(PICTURES))}); {corpus.obtain}")
    captioned = [name for name in pictures if _beside(name) in texts]
    if chosen.kind == "classes" or (chosen.kind == "auto" and not captioned):
        return Content(_classes(root, pictures, chosen.split))
    if not captioned:
        raise DataError(f"{root}: no .txt lies beside a picture, such as {_beside(pictures[0])}; {corpus.obtain}")
    if len(captioned) < len(pictures):
        tqdm.write(f"{root}: left out {len(pictures) - len(captioned):,} pictures without a .txt beside")
    return Content(_captions(root, captioned, language, chosen.split))


def _look(root: Path) -> tuple[list[str], set[str]]:
    """Pictures, and texts, by their path below the root."""
    pictures, texts, skipped = [], set(), []
    for entry in tqdm(_walk(root), "looking for pictures", leave=False, unit="file", dynamic_ncols=True):
        name = os.path.relpath(entry.path, root).replace(os.sep, "/")
        ending = os.path.splitext(name)[1].lower()
        if entry.is_symlink() and (entry.is_dir() or not Path(entry.path).resolve().is_relative_to(root.resolve())):
            skipped.append(name)
        elif ending in PICTURES:
            pictures.append(name)
        elif ending == ".txt":
            texts.add(name)
    if skipped:
        tqdm.write(f"{root}: skipped {len(skipped):,} links to folders or out of it, such as {skipped[0]}")
    return pictures, texts


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder, and every link to a folder, which is not followed."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue  # what systems put beside, such as macOS's ._NAME.jpg
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        else:
            yield entry


def _beside(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"


def _captions(root: Path, pictures: list[str], language: str, split: str) -> Iterator[Row]:
    for name in pictures:
        lines = list(File(root / _beside(name)).lines()) or [""]  # so that an empty file is counted as an empty text
        texts = [(language, line) for line in lines]
        yield Row(split=split, texts=texts, image=name, file=str((root / name).absolute()))


def _classes(root: Path, pictures: list[str], split: str) -> Iterator[Row]:
    """Rows of pictures in class folders, all of which lie in one folder, at whatever depth."""
    above = Counter(os.path.dirname(os.path.dirname(name)) for name in pictures if "/" in name)
    base = above.most_common(1)[0][0] if above else ""
    outside = next((name for name in pictures if "/" not in name or os.path.dirname(os.path.dirname(name)) != base), "")
    if outside:
        raise DataError(
            f"{root / outside}: a picture outside the class folders of {root / base}; move it away, or point --source "
            "at the folder that has nothing but class folders"
        )
    if len({os.path.dirname(name) for name in pictures}) == 1:
        raise DataError(f"{root / os.path.dirname(pictures[0])}: holds all pictures; sort them into a folder per class")
    for name in pictures:
        stratum = os.path.basename(os.path.dirname(name))
        image = f"{stratum}/{os.path.basename(name)}"
        yield Row(split=split, texts=[], image=image, file=str((root / name).absolute()), stratum=stratum)
