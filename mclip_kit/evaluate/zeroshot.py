"""Zero-shot classification: the class of a picture is the class with the nearest prompts.

Shapes: N pictures, C classes, T templates, D embedding.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.errors import DataError
from mclip_kit.evaluate import class_names
from mclip_kit.evaluate.base import Findings, Metric, Request, ResultRows, json_numbers
from mclip_kit.evaluate.checks import open_data
from mclip_kit.evaluate.class_names import Prompts
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.labelled import Labelled
from mclip_kit.evaluate.labelled import read_labelled as read_labelled
from mclip_kit.evaluate.models import computed_on, open_model
from mclip_kit.evaluate.ranks import ranks
from mclip_kit.evaluate.retrieval import STUDENT, TEACHER
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip

TEXTS = 4096  # prompts that are embedded at once
METRICS = (
    Metric("acc1", "top-1", "top-1 accuracy", drawn=True, sentence="of pictures get their own class first"),
    Metric("acc5", "top-5", "top-5 accuracy"),
    Metric("mean_per_class_recall", "class mean", "mean per-class recall"),
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


def evaluate(
    model: MultilingualClip,
    pictures: Labelled,
    prompts: Mapping[str, Prompts],
    for_teacher: Prompts | None = None,
    cache: FeatureCache | None = None,
) -> tuple[Zeroshot | None, dict[str, Zeroshot]]:
    """Classify by the teacher's own text tower, if it has prompts, and by the student in every language.

    A language that names only some of the classes is scored on their pictures alone. Pictures that cannot be read are
    left out, and their number is logged.

    Raises:
        DataError: none of a language's pictures can be read.
    """
    embed = Embedder(model, cache or FeatureCache())
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
    pictures: Labelled = request.opened or open_data(request)
    classes, languages = pictures.classes, request.languages
    known = (
        class_names.read_file(request.classes, classes) if request.classes else class_names.packaged(classes, languages)
    )
    prompts = class_names.chosen(known, languages)
    rows: ResultRows = []
    for name in request.models:
        model, cache = open_model(request, name)
        teacher, students = evaluate(model, pictures, prompts, known.get(TEACHER_LANGUAGE), cache)
        about = request.about(name, model.made_from) | {"split": pictures.split}
        rows += _rows(teacher, students, about, model.trained_languages)
        title = request.title(name, model.made_from, pictures.split)
        request.show(_table(title, teacher, students, model.trained_languages))
    return Findings(rows, device=computed_on(request))


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
    return "\n".join(
        [*lines, f"accuracy in percent, class mean: mean per-class recall; top-1 by chance is {chance:.2f}"]
    )
