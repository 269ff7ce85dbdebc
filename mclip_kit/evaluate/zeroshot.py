"""Zero-shot classification: the class of a picture is the class with the nearest prompts.

Shapes: N pictures, C classes, T templates, D embedding.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.corpora import Corpus, folder
from mclip_kit.data.corpora.source import File, Source
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.prepare import adhoc
from mclip_kit.errors import DataError
from mclip_kit.evaluate import class_names
from mclip_kit.evaluate.base import Findings, Metric, Request, ResultRows, json_numbers
from mclip_kit.evaluate.class_names import Prompts
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.ranks import ranks
from mclip_kit.evaluate.retrieval import STUDENT, TEACHER
from mclip_kit.features.cache import FeatureCache
from mclip_kit.layout import MANIFEST
from mclip_kit.models.multilingual_clip import MultilingualClip, load

TEXTS = 4096  # prompts that are embedded at once
METRICS = (
    Metric("acc1", "acc1", "acc@1", drawn=True),
    Metric("acc5", "acc5", "acc@5"),
    Metric("mean_per_class_recall", "per class", "mean per class recall"),
)


@dataclass(frozen=True)
class Zeroshot:
    """How one tower classifies in one language.

    Attributes:
        ranks_N: rank of each picture's own class, 1 is first; a wrong class with an equal score comes before it.
        labels_N: the number of that class.
        classes: the number of classes to choose from.
        shared: the number of classes that share their name with another class, and so tie with it.
    """

    ranks_N: np.ndarray
    labels_N: np.ndarray
    classes: int
    shared: int = 0

    def scores(self) -> dict[str, float]:
        """`METRICS` by name, as clip-benchmark computes them, as fractions.

        `acc5` is NaN if there are fewer than five classes. `mean_per_class_recall` is the mean over the classes that
        have pictures.
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
    """Ranks of the right classes; ties and non-finite embeddings (NaN or inf) count as misses."""
    return Zeroshot(ranks(image_ND, class_CD, labels_N, np.arange(len(class_CD))), labels_N, len(class_CD))


def class_embeddings(encode: Callable[[list[str]], np.ndarray], prompts: Prompts) -> np.ndarray:
    """The mean of each class's normalised prompts, normalised (C, D): Radford et al. 2021, section 3.1.4."""
    texts, T = prompts.texts(), len(prompts.templates)
    step = max(1, TEXTS // T) * T
    parts = [encode(texts[start : start + step]) for start in range(0, len(texts), step)]
    mean_CD = np.concatenate([part.reshape(-1, T, part.shape[1]).mean(1) for part in parts])
    with np.errstate(invalid="ignore"):  # prompts that cancel out give NaN, which counts as a miss
        normalised: np.ndarray = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
    return normalised


@dataclass(frozen=True)
class Labelled:
    """Pictures with their classes.

    Attributes:
        captions: the corpus of the pictures.
        images_N: rows of its picture table.
        classes: the classes of the pictures, in the order of their names; numbers by their value.
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
    prepared = (data / MANIFEST).is_file()
    captions = read_captions(data) if prepared else _class_folders(data, split)
    images_N = _split_images(captions, split) if prepared else np.arange(len(captions.names))
    found = sorted(set(captions.strata[images_N].tolist()))
    if len(found) < 2:
        raise DataError(f"{data}: one class only ({found[0]}); zero-shot classification needs a folder per class")
    if all(name.isdecimal() for name in found):
        found.sort(key=int)
    return Labelled(captions, images_N, found, split if prepared else "all")


def _class_folders(data: Path, split: str) -> Captions:
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; give a prepared one, or one with a folder of pictures per class")
    _, tree = adhoc.declare([], None, None, data, [TEACHER_LANGUAGE])
    corpus = parse(tree | {"options": {"kind": "classes", "check": False}}, Corpus, str(data))
    rows = list(folder.read(corpus, Source(data)).rows)
    splits = sorted({row.split for row in rows if row.split})  # of folders called train, val, test
    if splits and split not in splits:
        raise DataError(f"{data}: no pictures in split {split!r}; there are {', '.join(splits)}: --split {splits[0]}")
    rows = [row for row in rows if not splits or row.split == split]
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
    """Pictures of a split, by their captions; if there are no captions, all pictures of the only split."""
    if len(captions.images):
        return np.unique(captions.images[captions.select(split)])
    counts: dict[str, Any] = File(captions.folder / MANIFEST).json()
    try:
        known = list(counts["counts"]["splits"])
    except (KeyError, TypeError):
        raise DataError(f"{captions.folder / MANIFEST}: damaged; prepare the corpus again") from None
    if split not in known:
        raise DataError(f"{captions.folder}: no pictures in split {split!r}; there are {', '.join(known) or 'none'}")
    if len(known) > 1:
        raise DataError(f"{captions.folder}: it is not known which pictures are {split}; prepare its splits one by one")
    return np.arange(len(captions.names))


def evaluate(
    model: MultilingualClip, pictures: Labelled, prompts: Mapping[str, Prompts], for_teacher: Prompts | None = None
) -> tuple[Zeroshot | None, dict[str, Zeroshot]]:
    """Classify by the teacher's own text tower, if it has prompts, and by the student in every language.

    A language that names only some of the classes is scored on their pictures alone. Pictures that cannot be read are
    left out, and their number is logged.

    Raises:
        DataError: none of a language's pictures can be read.
    """
    embed = Embedder(model, FeatureCache())
    captions, images_N = pictures.captions, pictures.images_N
    image_ND, unreadable_N = embed.images(captions, images_N)
    if unreadable_N.any():
        embed.log(f"{captions.folder}: {unreadable_N.sum()} of {len(images_N)} pictures cannot be read: left out")
    embed.log_nonfinite("image", image_ND[~unreadable_N])
    strata_N = captions.strata[images_N]

    def scored(encode: Callable[[list[str]], np.ndarray], own: Prompts) -> Zeroshot:
        place = {name: number for number, name in enumerate(own.names)}
        label_N = np.array([place.get(name, -1) for name in strata_N])
        kept_N = (label_N >= 0) & ~unreadable_N
        if not kept_N.any():
            raise DataError(f"{captions.folder}: no readable picture of {', '.join(own.names.values())}")
        class_CD = class_embeddings(encode, own)
        embed.log_nonfinite("class", class_CD)
        found = score(image_ND[kept_N], class_CD, label_N[kept_N])
        named = Counter(own.names.values())
        return replace(found, shared=sum(count for count in named.values() if count > 1))

    teacher = scored(embed.teacher, for_teacher) if for_teacher else None
    return teacher, {language: scored(embed.student, own) for language, own in prompts.items()}


def run(request: Request) -> Findings:
    """Score every model: a table of accuracies by language."""
    pictures = read_labelled(request.data, request.split)
    classes, languages = pictures.classes, request.languages
    known = (
        class_names.read_file(request.classes, classes) if request.classes else class_names.packaged(classes, languages)
    )
    prompts = class_names.chosen(known, languages)
    rows: ResultRows = []
    for name in request.models:
        model = load(name)
        teacher, students = evaluate(model, pictures, prompts, known.get(TEACHER_LANGUAGE))
        about = request.about(name, model.made_from) | {"split": pictures.split}
        rows += _rows(teacher, students, about, model.trained_languages)
        title = request.title(name, model.made_from, pictures.split)
        request.show(_table(title, teacher, students, model.trained_languages))
    return Findings(rows)


def _rows(
    teacher: Zeroshot | None, students: Mapping[str, Zeroshot], about: dict[str, Any], trained: Sequence[str]
) -> ResultRows:
    """A row of results.json for each tower and language."""
    towers: list[tuple[str, str, bool | None, Zeroshot]] = (
        [(TEACHER_LANGUAGE, TEACHER, None, teacher)] if teacher else []
    )
    towers += [(language, STUDENT, language in trained, found) for language, found in students.items()]
    return [
        about
        | {
            "language": language,
            "tower": tower,
            "n_images": len(found.ranks_N),
            "n_classes": found.classes,
            "trained": is_trained,
            "metrics": json_numbers(found.scores()),
        }
        for language, tower, is_trained, found in towers
    ]


def _table(title: str, teacher: Zeroshot | None, students: Mapping[str, Zeroshot], trained: Sequence[str]) -> str:
    """Accuracies in percent: the teacher, and every language."""
    heads = "".join(f"{head:>11}" for head in (*(metric.label for metric in METRICS), "classes", "pictures"))
    lines = [title, f"{'':26}{heads}"]
    named = [(f"teacher's own text, {TEACHER_LANGUAGE}", teacher)] if teacher else []
    named += [(f"  {name}{'' if name in trained else '  never trained'}", own) for name, own in students.items()]
    for label, found in named:
        scores = "".join(f"{'' if np.isnan(value) else f'{100 * value:.1f}':>11}" for value in found.scores().values())
        lines.append(f"{label:26}{scores}{found.classes:11,}{len(found.ranks_N):11,}")
    shared = [f"{name} {own.shared}" for name, own in students.items() if own.shared]
    if shared:
        lines.append(f"classes that share a name with another class, and count as misses: {', '.join(shared)}")
    chance = 100 / max(own.classes for own in students.values())
    return "\n".join([*lines, f"percent; chance acc1 is {chance:.2f}"])
