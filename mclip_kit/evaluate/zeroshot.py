"""Zero-shot classification: a picture's class is the one whose prompts are nearest.

N pictures, C classes, T templates, D embedding.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.corpora import Corpus, folder
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.prepare import adhoc
from mclip_kit.errors import DataError
from mclip_kit.evaluate.class_names import Prompts
from mclip_kit.evaluate.ranks import ranks
from mclip_kit.evaluate.retrieval import Embedder
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip

TEXTS = 4096  # prompts that are embedded at once


@dataclass(frozen=True)
class Zeroshot:
    """How one tower classifies in one language.

    Attributes:
        ranks_N: rank of each picture's own class, 1 is first; one with an equal score comes before it.
        labels_N: that class's number.
        classes: how many there are to choose from.
        shared: how many of them have another's name, and so tie with it.
    """

    ranks_N: np.ndarray
    labels_N: np.ndarray
    classes: int
    shared: int = 0

    def scores(self) -> dict[str, float]:
        """clip-benchmark's `acc1`, `acc5` (NaN among fewer than five classes) and `mean_per_class_recall`, fractions.

        The last is the mean over the classes that have pictures.
        """
        hits_N = self.ranks_N == 1
        own_C, all_C = np.bincount(self.labels_N[hits_N], minlength=self.classes), np.bincount(self.labels_N)
        present = np.flatnonzero(all_C)
        return {
            "acc1": float(hits_N.mean()),
            "acc5": float((self.ranks_N <= 5).mean()) if self.classes >= 5 else float("nan"),
            "mean_per_class_recall": float((own_C[present] / all_C[present]).mean()),
        }


def score(image_ND: np.ndarray, class_CD: np.ndarray, labels_N: np.ndarray) -> Zeroshot:
    """Ranks of the right classes; ties count against, and what is no number is never a hit."""
    return Zeroshot(ranks(image_ND, class_CD, labels_N, np.arange(len(class_CD))), labels_N, len(class_CD))


def class_embeddings(encode: Callable[[list[str]], np.ndarray], prompts: Prompts) -> np.ndarray:
    """The mean of each class's normalised prompts, normalised (C, D): Radford et al. 2021, section 3.1.4."""
    texts, T = prompts.texts(), len(prompts.templates)
    step = max(1, TEXTS // T) * T
    parts = [encode(texts[start : start + step]) for start in range(0, len(texts), step)]
    mean_CD = np.concatenate([part.reshape(-1, T, part.shape[1]).mean(1) for part in parts])
    with np.errstate(invalid="ignore"):  # prompts that cancel out have no direction, and are never a hit
        normalised: np.ndarray = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
    return normalised


@dataclass(frozen=True)
class Labelled:
    """Pictures by class.

    Attributes:
        captions: where the pictures are.
        images_N: rows of its picture table.
        classes: of all its pictures, in the order of names; numbers by their value.
        split: its name; `all` where nothing is split.
    """

    captions: Captions
    images_N: np.ndarray
    classes: list[str]
    split: str


def read_labelled(data: Path, split: str) -> Labelled:
    """A prepared folder whose strata are the classes, or a folder that has one folder of pictures a class.

    Raises:
        DataError: there is no such split or it is not known which pictures it has, or there is but one class.
    """
    prepared = (data / "manifest.json").is_file()
    captions = read_captions(data) if prepared else _class_folders(data)
    images_N = _split_images(captions, split) if prepared else np.arange(len(captions.names))
    found = sorted(set(captions.strata[images_N].tolist()))
    if len(found) < 2:
        raise DataError(f"{data}: one class only ({found[0]}); zero-shot classification needs a folder a class")
    if all(name.isdecimal() for name in found):
        found.sort(key=int)
    return Labelled(captions, images_N, found, split if prepared else "all")


def _class_folders(data: Path) -> Captions:
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; give a prepared one, or one that has a folder of pictures a class")
    _, tree = adhoc.declare([], None, None, data, [])
    corpus = parse(tree | {"options": {"kind": "classes"}}, Corpus, str(data))
    rows = list(folder.read(corpus, Source(data)).rows)
    none = np.empty(0, dtype=object)
    return Captions(
        folder=data,
        pixels=None,
        names=[str(row.image) for row in rows],
        groups=np.arange(len(rows)),
        strata=np.array([row.stratum for row in rows]),
        images=np.empty(0, np.int64),
        languages=none,
        splits=none,
        texts=none,
        files=[Path(str(row.file)) for row in rows],
    )


def _split_images(captions: Captions, split: str) -> np.ndarray:
    """Pictures of a split, by their captions; without any, all of them, if the manifest knows of one split only."""
    if len(captions.images):
        return np.unique(captions.images[captions.select(split)])
    counts: dict[str, Any] = File(captions.folder / "manifest.json").json()
    try:
        known = list(counts["counts"]["splits"])
    except (KeyError, TypeError):
        raise DataError(f"{captions.folder / 'manifest.json'}: damaged; prepare the corpus again") from None
    if split not in known:
        raise DataError(f"{captions.folder}: no pictures in split {split!r}; there are {', '.join(known) or 'none'}")
    if len(known) > 1:
        raise DataError(f"{captions.folder}: which pictures are {split} is not kept; prepare its splits one by one")
    return np.arange(len(captions.names))


def evaluate(
    model: MultilingualClip, pictures: Labelled, prompts: Mapping[str, Prompts], english: Prompts | None = None
) -> tuple[Zeroshot | None, dict[str, Zeroshot]]:
    """The teacher's own text tower in English, if there are English prompts, and the student in every language.

    A language that names some of the classes is scored on their pictures alone.

    Raises:
        DataError: none of a language's pictures can be read.
    """
    embed = Embedder(model, FeatureCache())
    captions, images_N = pictures.captions, pictures.images_N
    image_ND, unreadable_N = embed.images(captions, images_N)
    if unreadable_N.any():
        embed.log(f"{captions.folder}: {unreadable_N.sum()} of {len(images_N)} pictures cannot be read: left out")
    embed.count_odd("image", image_ND[~unreadable_N])
    strata_N = captions.strata[images_N]

    def scored(encode: Callable[[list[str]], np.ndarray], own: Prompts) -> Zeroshot:
        place = {name: number for number, name in enumerate(own.names)}
        label_N = np.array([place.get(name, -1) for name in strata_N])
        kept_N = (label_N >= 0) & ~unreadable_N
        if not kept_N.any():
            raise DataError(f"{captions.folder}: no readable picture of {', '.join(own.names.values())}")
        class_CD = class_embeddings(encode, own)
        embed.count_odd("class", class_CD)
        found = score(image_ND[kept_N], class_CD, label_N[kept_N])
        named = Counter(own.names.values())
        return replace(found, shared=sum(count for count in named.values() if count > 1))

    teacher = scored(embed.teacher, english) if english else None
    return teacher, {language: scored(embed.student, own) for language, own in prompts.items()}
