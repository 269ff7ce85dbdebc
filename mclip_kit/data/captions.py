"""Image-caption pairs of a prepared folder.

The pictures are rows of images.npy, or files. For files, the column `file` of their table has a path, or a tar member
as `data.images` names it. An empty cell means that the file was not found when the corpus was prepared; then it is
looked for in the folder `pictures`, where a user may have put it since.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from mclip_kit.config.model import AS_SEEN
from mclip_kit.data import images
from mclip_kit.data.arrays import LateArray, open_array
from mclip_kit.data.columns import Labels, Strings, as_array, as_keys
from mclip_kit.data.manifest import check_files
from mclip_kit.data.pictures import to_rgb
from mclip_kit.data.sequences import blocks_of
from mclip_kit.data.tables import open_tables
from mclip_kit.errors import DataError, first_line
from mclip_kit.layout import IMAGES_ARRAY, MANIFEST, PICTURES
from mclip_kit.storage import fetch, place
from mclip_kit.urls import is_copy


@dataclass(frozen=True)
class Captions:
    """The tables of a prepared folder.

    Attributes:
        folder: the prepared folder.
        pixels: uint8 (N, S, S, 3), memory-mapped, of a copy brought when a row is read; None if pictures are files.
        names: a name for each of the N pictures.
        groups: int64 (N,); pictures with the same number look the same.
        strata: a label for each picture, by which results are also reported.
        images, languages, splits, texts: columns of the caption table; `images` are rows of the picture table.
        files: a path or tar member for each picture; empty if pictures are rows of `pixels`.
        uncaptioned: split -> pictures that have no caption there, as rows of the picture table.
        keys: hash of the content of each picture, uint64 (N, 2), zeros where it is not known; None: of none.
        all_keys_known: whether it is known of every picture.
    """

    folder: Path
    pixels: np.ndarray | LateArray | None
    names: Sequence[str]
    groups: np.ndarray
    strata: Labels
    images: np.ndarray
    languages: Labels
    splits: Labels
    texts: Strings
    files: Sequence[Path]
    uncaptioned: Mapping[str, np.ndarray] = field(default_factory=dict)
    keys: np.ndarray | None = field(default_factory=lambda: None)  # a default would hide `__getattr__`
    all_keys_known: bool = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A column that is read when it is first asked for, see `_read_later`."""
            later = self.__dict__.get("_later", {})
            if name not in later:
                raise AttributeError(f"Captions has no {name}")
            self.__dict__[name] = later[name]()
            return self.__dict__[name]

    def select(self, split: str | Mapping[str, str], languages: Sequence[str] | str = "all") -> np.ndarray:
        """The rows of the caption table that are in a split and in some languages, int64.

        Args:
            split: of all rows; or language -> split, to take each language from its own split.
            languages: codes, or `all`.
        Raises:
            DataError: a language or the split has no caption; the message lists those that have some.
        """
        wanted, found = self.check(split, languages), [np.empty(0, np.int64)]
        for part in blocks_of(len(self.splits)):
            inside, own = self.splits.take(part), self.languages.take(part)
            chosen = np.zeros(len(own), bool)
            for name, codes in wanted.items():
                chosen |= inside.isin([name]) & own.isin(codes)
            found.append(part.start + np.flatnonzero(chosen))
        return np.concatenate(found)

    def check(self, split: str | Mapping[str, str], languages: Sequence[str] | str = "all") -> dict[str, list[str]]:
        """Split -> the wanted languages from it; arguments and errors as of `select`."""
        if isinstance(split, str):
            return {split: self._languages_of(split, languages)}
        wanted = list(split) if languages == "all" else list(languages)
        missing = [language for language in wanted if language not in split]
        if missing or not wanted:
            asked = ", ".join(missing) or "an empty list of languages"
            named = ", ".join(f"{language} from {name}" for language, name in split.items()) or "none"
            raise DataError(f"{self.folder}: no split is given for {asked}; given are {named}")
        found: dict[str, list[str]] = {}
        for language in wanted:
            found.setdefault(split[language], []).extend(self._languages_of(split[language], [language]))
        return found

    def _languages_of(self, split: str, languages: Sequence[str] | str) -> list[str]:
        """The wanted languages of a split; each has captions there."""
        parts = blocks_of(len(self.splits))
        present = [self.languages.take(part).present(self.splits.take(part).isin([split])) for part in parts]
        known = sorted({*chain.from_iterable(present)})
        if not known:
            there = self.splits.present()
            raise DataError(f"{self.folder}: no captions in split {split!r}; there are {', '.join(there) or 'none'}")
        wanted = known if languages == "all" else list(languages)
        missing = [language for language in wanted if language not in known]
        if missing or not wanted:
            asked = ", ".join(missing) or "an empty list of languages"
            raise DataError(f"{self.folder}: no {split} captions in {asked}; there are {', '.join(known)}")
        return wanted

    def only(self, split: str) -> "Captions":
        """The same pictures with the captions of one split."""
        rows = np.flatnonzero(self.splits.isin([split]))
        labels = {name: getattr(self, name).take(rows) for name in ("languages", "splits", "texts")}
        return replace(self, images=self.images[rows], **labels)

    def gallery(self, split: str) -> np.ndarray:
        """The pictures of a split, with or without captions, as rows of the picture table; int64, sorted.

        It is the same whatever languages are asked for.
        """
        with_captions = self.images[self.splits.isin([split])]
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
    none = Labels.of([])
    return Captions(
        folder=folder,
        pixels=None,
        names=list(names),
        groups=np.arange(len(names)),
        strata=Labels.of(list(strata)),
        images=np.empty(0, np.int64),
        languages=none,
        splits=none,
        texts=Strings.of([]),
        files=list(files),
    )


def check_prepared(folder: str | Path) -> None:
    """DataError if a folder is not a prepared one; its tables are not read."""
    if not fetch(place(folder) / MANIFEST).is_file():
        raise DataError(f"{folder}: not a prepared corpus (no {MANIFEST}); run mclip-kit prepare")


def read_captions(folder: str | Path) -> Captions:
    """Open a prepared folder.

    Raises:
        DataError: it is missing, damaged, or its tables do not fit together; file and row are named.
    """
    folder = place(folder)
    check_prepared(folder)
    tables = open_tables(folder)
    images, captions, known = tables.images, tables.captions, tables.images.schema.names
    pixels: np.ndarray | LateArray | None = None
    if "file" not in known and len(images):
        read = partial(_read_pixels, folder, len(images))
        pixels = LateArray(len(images), read) if is_copy(folder) else read()
    columns = {"groups": lambda: as_array(images["group"]), "images": lambda: as_array(captions["image"])}
    if "key" in known:
        columns["keys"] = lambda: as_keys(images["key"])
    found = Captions(
        folder=folder,
        pixels=pixels,
        names=Strings(images["image"]),
        groups=np.empty(0),
        strata=Labels.of(images["stratum"]),
        images=np.empty(0),
        languages=Labels.of(captions["language"]),
        splits=Labels.of(captions["split"]),
        texts=Strings(captions["caption"]),
        files=Files(folder, Strings(images["image"]), Strings(images["file"])) if "file" in known else [],
        uncaptioned=_uncaptioned(tables.uncaptioned),
        all_keys_known="key" in known and all(_keys_are_known(chunk) for chunk in images["key"].chunks),
    )
    return _read_later(found, columns)


def _keys_are_known(chunk: pa.Array) -> bool:
    return bool(as_keys(pa.chunked_array([chunk])).any(1).all())


def _read_later(captions: Captions, columns: Mapping[str, Callable[[], np.ndarray]]) -> Captions:
    """The captions with columns that are read when they are first asked for: a run whose rows are made needs none."""
    for name in columns:
        captions.__dict__.pop(name, None)
    captions.__dict__["_later"] = columns
    return captions


def _uncaptioned(table: pa.Table) -> dict[str, np.ndarray]:
    """Split -> its pictures without captions; a folder of an earlier version does not name them."""
    images, splits = as_array(table["image"]), Labels.of(table["split"])
    return {name: images[splits.isin([name])] for name in splits.names}


class Files(Sequence[Path]):
    """Where pictures are: a path or a tar member of each; `pictures/NAME` in the folder if it was not found."""

    def __init__(self, folder: Path, names: Strings, files: Strings) -> None:
        self._folder, self._names, self._files = folder, names, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[image] for image in range(*index.indices(len(self)))]
        return self._folder / place(self._files[index] or Path(PICTURES, self._names[index]))


def _read_pixels(folder: Path, count: int) -> np.ndarray:
    path = fetch(folder / IMAGES_ARRAY)
    try:
        pixels = open_array(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); prepare it with --again") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise DataError(f"{path}: {pixels.dtype} {pixels.shape}, not uint8 (N, S, S, 3); prepare it with --again")
    if len(pixels) != count:
        raise DataError(f"{folder}: {path.name} has {len(pixels)} pictures, its table {count}; prepare it with --again")
    check_files(folder, [IMAGES_ARRAY])
    return pixels
