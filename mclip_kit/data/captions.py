"""Image-caption pairs of a prepared folder.

The pictures are rows of images.npy, or files. For files, the column `file` of images.tsv has a path, or a tar member
as `data.images` names it. An empty cell means that the file was not found when the corpus was prepared; then it is
looked for in the folder `pictures`, where a user may have put it since.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mclip_kit.config.model import AS_SEEN
from mclip_kit.data import images
from mclip_kit.data.arrays import open_array
from mclip_kit.data.manifest import check_files
from mclip_kit.data.pictures import to_rgb
from mclip_kit.errors import DataError, first_line
from mclip_kit.layout import (
    CAPTION_COLUMNS,
    CAPTIONS_TABLE,
    IMAGE_COLUMNS,
    IMAGES_ARRAY,
    IMAGES_TABLE,
    MANIFEST,
    PICTURES,
    UNCAPTIONED_COLUMNS,
    UNCAPTIONED_TABLE,
)


@dataclass(frozen=True)
class Captions:
    """The tables of a prepared folder.

    Attributes:
        folder: the prepared folder.
        pixels: uint8 (N, S, S, 3), memory-mapped; None if pictures are files.
        names: a name for each of the N pictures.
        groups: int64 (N,); pictures with the same number look the same.
        strata: a label for each picture, by which results are also reported.
        images, languages, splits, texts: columns of the caption table; `images` are rows of the picture table.
        files: a path or tar member for each picture; empty if pictures are rows of `pixels`.
        uncaptioned: split -> pictures that have no caption there, as rows of the picture table.
    """

    folder: Path
    pixels: np.ndarray | None
    names: list[str]
    groups: np.ndarray
    strata: np.ndarray
    images: np.ndarray
    languages: np.ndarray
    splits: np.ndarray
    texts: np.ndarray
    files: list[Path]
    uncaptioned: Mapping[str, np.ndarray] = field(default_factory=dict)

    def select(self, split: str | Mapping[str, str], languages: Sequence[str] | str = "all") -> np.ndarray:
        """The rows of the caption table that are in a split and in some languages, int64.

        Args:
            split: of all rows; or language -> split, to take each language from its own split.
            languages: codes, or `all`.
        Raises:
            DataError: a language or the split has no caption; the message lists those that have some.
        """
        if not isinstance(split, str):
            return self._select_each(split, list(split) if languages == "all" else list(languages))
        inside = self.splits == split
        if not inside.any():
            known = sorted(set(self.splits))
            raise DataError(f"{self.folder}: no captions in split {split!r}; there are {', '.join(known) or 'none'}")
        known = sorted(set(self.languages[inside]))
        wanted = known if languages == "all" else list(languages)
        missing = [language for language in wanted if language not in known]
        if missing or not wanted:
            asked = ", ".join(missing) or "an empty list of languages"
            raise DataError(f"{self.folder}: no {split} captions in {asked}; there are {', '.join(known)}")
        return np.flatnonzero(inside & np.isin(self.languages, wanted))

    def _select_each(self, splits: Mapping[str, str], languages: list[str]) -> np.ndarray:
        """The rows of each language from its own split, in the table's order."""
        missing = [language for language in languages if language not in splits]
        if missing or not languages:
            asked = ", ".join(missing) or "an empty list of languages"
            named = ", ".join(f"{language} from {split}" for language, split in splits.items()) or "none"
            raise DataError(f"{self.folder}: no split is given for {asked}; given are {named}")
        return np.unique(np.concatenate([self.select(splits[language], [language]) for language in languages]))

    def only(self, split: str) -> "Captions":
        """The same pictures with the captions of one split."""
        rows = self.splits == split
        columns = {name: getattr(self, name)[rows] for name in ("images", "languages", "splits", "texts")}
        return replace(self, **columns)

    def gallery(self, split: str) -> np.ndarray:
        """The pictures of a split, with or without captions, as rows of the picture table; int64, sorted.

        It is the same whatever languages are asked for.
        """
        with_captions = self.images[self.splits == split]
        return np.union1d(with_captions, self.uncaptioned.get(split, np.empty(0, np.int64))).astype(np.int64)

    def open(self, image: int) -> Image.Image:
        """A picture as its file has it; `data.pictures.to_rgb` makes it RGB.

        Args:
            image: its row in the picture table.

        Raises:
            DataError: its file is missing or cannot be decoded.
        """
        if self.pixels is not None:
            return Image.fromarray(np.asarray(self.pixels[image]))
        path = self.files[image]
        try:
            picture = images.open_picture(io.BytesIO(images.read_bytes(path)))
            picture.load()
            return picture
        except UnidentifiedImageError:
            raise DataError(f"{path}: not a readable picture: cannot identify its format") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as PIL's decoders raise
            reason = getattr(error, "strerror", None) or first_line(error)  # the system's words, without the path
            raise DataError(f"{path}: not a readable picture: {reason}") from None

    def picture(self, image: int) -> Image.Image:
        """A picture in RGB as people see it: upright, transparent pixels on white. Errors as of `open`."""
        picture = self.open(image)
        try:
            return to_rgb(picture, AS_SEEN)
        except DataError as error:
            raise DataError(f"{self.names[image]}: {error}") from None


def uncaptioned(folder: Path, names: Sequence[str], strata: Sequence[str], files: Sequence[Path]) -> Captions:
    """Picture files of a folder that is not prepared, without captions; no two of them count as the same."""
    none = np.empty(0, dtype=object)
    return Captions(
        folder=folder,
        pixels=None,
        names=list(names),
        groups=np.arange(len(names)),
        strata=np.array(strata),
        images=np.empty(0, np.int64),
        languages=none,
        splits=none,
        texts=none,
        files=list(files),
    )


def check_prepared(folder: str | Path) -> None:
    """DataError if a folder is not a prepared one; its tables are not read."""
    if not Path(folder, MANIFEST).is_file():
        raise DataError(f"{folder}: not a prepared corpus (no {MANIFEST}); run mclip-kit prepare")


def read_captions(folder: str | Path) -> Captions:
    """Open a prepared folder.

    Raises:
        DataError: it is missing, damaged, or its tables do not fit together; file and row are named.
    """
    folder = Path(folder)
    check_prepared(folder)
    images = _read_table(folder / IMAGES_TABLE, IMAGE_COLUMNS, "file")
    captions = _read_table(folder / CAPTIONS_TABLE, CAPTION_COLUMNS)
    wrong = next((line for line, row in enumerate(images, 2) if not row[1].isdecimal()), None)
    if wrong:
        raise DataError(f"{folder / IMAGES_TABLE} line {wrong}: its group is not a number; prepare it with --again")
    groups = np.array([int(row[1]) for row in images], dtype=np.int64)
    has_pixels = bool(images) and len(images[0]) == len(IMAGE_COLUMNS)
    pixels = _read_pixels(folder, len(images)) if has_pixels else None
    row_of = {row[0]: number for number, row in enumerate(images)}
    named_images = _rows_of(captions, row_of, folder / CAPTIONS_TABLE)
    without = _read_uncaptioned(folder / UNCAPTIONED_TABLE, row_of)
    check_files(folder, (IMAGES_TABLE, CAPTIONS_TABLE, UNCAPTIONED_TABLE, *([IMAGES_ARRAY] if has_pixels else [])))
    return Captions(
        folder=folder,
        pixels=pixels,
        names=[row[0] for row in images],
        groups=groups,
        strata=np.array([row[2] for row in images]),
        images=named_images,
        languages=np.array([row[1] for row in captions]),
        splits=np.array([row[2] for row in captions]),
        texts=np.array([row[3] for row in captions], dtype=object),
        files=[] if has_pixels else [folder / (row[3] or Path(PICTURES, row[0])) for row in images],
        uncaptioned=without,
    )


def _rows_of(rows: list[list[str]], row_of: Mapping[str, int], path: Path) -> np.ndarray:
    """The row in the picture table of the picture in each first cell, int64."""
    unknown = next((line for line, row in enumerate(rows, 2) if row[0] not in row_of), None)
    if unknown:
        raise DataError(f"{path} line {unknown}: its image is not in {IMAGES_TABLE}; prepare it with --again")
    return np.array([row_of[row[0]] for row in rows], dtype=np.int64)


def _read_uncaptioned(path: Path, row_of: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Split -> its pictures without captions; a folder of an earlier version does not name them."""
    if not path.is_file():
        return {}
    rows = _read_table(path, UNCAPTIONED_COLUMNS)
    images, splits = _rows_of(rows, row_of, path), np.array([row[1] for row in rows])
    return {str(split): images[splits == split] for split in np.unique(splits)}


def _read_pixels(folder: Path, count: int) -> np.ndarray:
    path = folder / IMAGES_ARRAY
    try:
        pixels = open_array(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare it with --again") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(f"{path}: {pixels.dtype} {pixels.shape}, not uint8 (N, S, S, 3); prepare it with --again")
    if len(pixels) != count:
        raise DataError(
            f"{folder}: {path.name} has {len(pixels)} pictures, {IMAGES_TABLE} {count}; prepare it with --again"
        )
    return pixels


def _read_table(path: Path, columns: tuple[str, ...], more: str | None = None) -> list[list[str]]:
    """The rows of a table; `more` is a column that may come after the others."""
    try:
        with open(path, encoding="utf-8", newline="\n") as handle:  # a CR inside a caption ends no row
            header, *rows = (line.rstrip("\r\n").split("\t") for line in handle)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; prepare it with --again") from None
    except ValueError as error:
        raise DataError(f"{path}: not a UTF-8 table ({error}); prepare it with --again") from None
    if more and tuple(header) == (*columns, more):
        columns = (*columns, more)
    if tuple(header) != columns:
        raise DataError(f"{path} line 1: columns are {', '.join(header)}, not {', '.join(columns)}")
    wrong = next((line for line, row in enumerate(rows, 2) if len(row) != len(columns)), None)
    if wrong:
        raise DataError(f"{path} line {wrong}: {len(rows[wrong - 2])} columns, not {len(columns)}")
    return rows
