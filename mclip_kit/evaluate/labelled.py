"""Pictures with their classes: of a prepared folder, or of a folder with one folder of pictures per class.

This module imports no torch, so that wrong data is refused in a fraction of a second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions, uncaptioned
from mclip_kit.data.corpora import Corpus, folder
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.prepare import adhoc
from mclip_kit.errors import DataError
from mclip_kit.layout import MANIFEST
from mclip_kit.storage import fetch

ALL, TEST = "all", "test"  # what pictures without splits are called, and the default of --split


@dataclass(frozen=True)
class Labelled:
    """Pictures with their classes.

    Attributes:
        captions: the corpus of the pictures.
        images_N: rows of its picture table.
        classes: those of the whole corpus, also classes without a picture in the split, in the order of their names;
            numbers by their value. Of a corpus with captions: those of the split's pictures.
        split: the name of the split; `all` where there are no splits.
    """

    captions: Captions
    images_N: np.ndarray
    classes: list[str]
    split: str


def read_labelled(data: Path, split: str) -> Labelled:
    """Read a prepared folder, in which strata are classes, or a folder with one folder of pictures per class.

    Raises:
        DataError: there is no such split, its pictures are not known, or there is only one class.
    """
    prepared = fetch(data / MANIFEST).is_file()
    if prepared:
        captions = read_captions(data)
        images_N = _split_images(captions, split)
    else:
        captions, images_N = _class_folders(data, split)
    of_all = not len(captions.images)  # where there are captions, strata need not be classes
    found = captions.strata.present() if of_all else captions.strata.present(images_N)
    if len(found) < 2:
        raise DataError(f"{data}: one class only ({found[0]}); zero-shot classification needs a folder per class")
    if all(name.isdecimal() for name in found):
        found.sort(key=int)
    return Labelled(captions, images_N, found, split if prepared else ALL)


def _class_folders(data: Path, split: str) -> tuple[Captions, np.ndarray]:
    """The pictures of all splits, and the rows of one."""
    if not fetch(data).is_dir():
        raise DataError(f"{data}: no such folder; give a prepared one, or one with a folder of pictures per class")
    _, tree = adhoc.declare([], None, None, data, [TEACHER_LANGUAGE])
    corpus = parse(tree | {"options": {"kind": "classes", "check": False}}, Corpus, str(data))
    rows = list(folder.read(corpus, Source(data)).rows)
    splits = sorted({row.split for row in rows if row.split})  # of folders called train, val, test
    if splits and split not in splits:
        raise DataError(f"{data}: no pictures in split {split!r}; there are {', '.join(splits)}: --split {splits[0]}")
    if not splits and split not in (TEST, ALL):
        raise DataError(f"{data}: has no splits, so there is no {split!r}; leave --split out")
    images_N = np.flatnonzero([not splits or row.split == split for row in rows])
    files = [Path(str(row.file)) for row in rows]
    return uncaptioned(data, [str(row.image) for row in rows], [row.stratum for row in rows], files), images_N


def _split_images(captions: Captions, split: str) -> np.ndarray:
    """Pictures of a split; of a folder of an earlier version without captions, all pictures of the only split."""
    if len(found := captions.gallery(split)):
        return found
    if len(captions.images) or captions.uncaptioned:
        known = sorted({*captions.splits.present(), *captions.uncaptioned})
        raise DataError(f"{captions.folder}: no pictures in split {split!r}; there are {', '.join(known)}")
    counts: dict[str, Any] = File(captions.folder / MANIFEST).json()
    try:
        known = list(counts["counts"]["splits"])
    except (KeyError, TypeError):
        raise DataError(f"{captions.folder / MANIFEST}: damaged; prepare it with --again") from None
    if split not in known:
        raise DataError(f"{captions.folder}: no pictures in split {split!r}; there are {', '.join(known) or 'none'}")
    if len(known) > 1:
        raise DataError(f"{captions.folder}: it is not known which pictures are {split}; prepare its splits one by one")
    return np.arange(len(captions.names))
