"""Image-text retrieval: metrics of arrays, and the evaluation of a model in many languages."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.features.feed import Frozen
from mclip_kit.features.store import Store
from mclip_kit.features.table import NoRoom
from mclip_kit.stage import Stage
from mclip_kit.towers.mode import evaluating
from mclip_kit.towers.model import MultilingualClip

KS = (1, 5, 10)
BATCH = 256


def ranks(
    queries_QD: np.ndarray, gallery_GD: np.ndarray, query_groups_Q: np.ndarray, gallery_groups_G: np.ndarray
) -> np.ndarray:
    """Rank of each query's best right answer, 1 is first; int64 (Q,).

    Right is every gallery item of the query's group. A wrong item with an equal score comes before it, so that
    constant embeddings score chance or worse. The gallery is compared in blocks of queries.
    """
    out = np.empty(len(queries_QD), dtype=np.int64)
    for start in range(0, len(queries_QD), 1024):
        block = slice(start, start + 1024)
        scores_BG = queries_QD[block] @ gallery_GD.T
        right_BG = query_groups_Q[block, None] == gallery_groups_G[None, :]
        best_B = np.where(right_BG, scores_BG, -np.inf).max(1)
        nearer_BG = ~(scores_BG < best_B[:, None])  # written so that NaN counts as nearer
        out[block] = 1 + (nearer_BG & ~right_BG).sum(1)
    return out


def recall(ranks_Q: np.ndarray) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent."""
    return {f"r{k}": float((ranks_Q <= k).mean() * 100) for k in KS}


@dataclass(frozen=True)
class Retrieval:
    """Ranks of one tower in one language.

    Attributes:
        t2i_Q: rank of the right picture of each caption.
        i2t_G: rank of the right caption of each picture that has one in this language.
        strata_Q, strata_G: label of each caption's picture, and of each of those pictures.
        gallery: number of pictures that a caption is compared with.
        groups_Q, groups_G: group of each caption's picture, and of each of those pictures.
    """

    t2i_Q: np.ndarray
    i2t_G: np.ndarray
    strata_Q: np.ndarray
    strata_G: np.ndarray
    gallery: int
    groups_Q: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    groups_G: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def scores(self, stratum: str | None = None) -> dict[str, float]:
        """Recalls both ways in percent and their mean; of one stratum's queries, if given."""
        kept_Q = slice(None) if stratum is None else self.strata_Q == stratum
        kept_G = slice(None) if stratum is None else self.strata_G == stratum
        both = {"t2i": recall(self.t2i_Q[kept_Q]), "i2t": recall(self.i2t_G[kept_G])}
        flat = {f"{way}_{name}": value for way, values in both.items() for name, value in values.items()}
        return {**flat, "mean_recall": float(np.mean(list(flat.values())))}


def score(
    image_GD: np.ndarray,
    text_QD: np.ndarray,
    image_groups_G: np.ndarray,
    text_images_Q: np.ndarray,
    strata_G: np.ndarray,
) -> Retrieval:
    """Both directions.

    Args:
        image_GD, text_QD: L2-normalised embeddings.
        image_groups_G: pictures with the same number are the same answer.
        text_images_Q: the picture of each caption, a row of image_GD.
        strata_G: label of each picture.
    """
    text_groups_Q = image_groups_G[text_images_Q]
    named_G = np.isin(image_groups_G, text_groups_Q)
    return Retrieval(
        t2i_Q=ranks(text_QD, image_GD, text_groups_Q, image_groups_G),
        i2t_G=ranks(image_GD[named_G], text_QD, image_groups_G[named_G], text_groups_Q),
        strata_Q=strata_G[text_images_Q],
        strata_G=strata_G[named_G],
        gallery=len(image_GD),
        groups_Q=text_groups_Q,
        groups_G=image_groups_G[named_G],
    )


def evaluate(
    model: MultilingualClip,
    captions: Captions,
    split: str,
    languages: Sequence[str] | str = "all",
    teacher_language: str | None = "en",
    store: Store | None = None,
    tower: Literal["student", "teacher"] = "student",
    protocol: str = "any",
) -> dict[str, Retrieval]:
    """Retrieval among a split's pictures, by language; the teacher's own text tower comes as `teacher`.

    Args:
        teacher_language: the language of the teacher's line; None leaves it out.
        store: features that are already known and stay valid.
        tower: which one encodes the captions of `languages`.
        protocol: what a right answer is; `any`: every picture or caption of the query's group.
    """
    if protocol != "any":
        raise RecipeError(f"protocol {protocol!r}: there is any")
    rows = captions.select(split, languages)
    images, text_images_Q = np.unique(captions.images[rows], return_inverse=True)
    texts, spoken = captions.texts[rows], captions.languages[rows]
    embed = Embedder(model, store or Store())
    image_GD, unreadable_G = embed.images(captions, images)
    if unreadable_G.any():  # nobody can look for these
        embed.say(f"{captions.folder}: {unreadable_G.sum()} of {len(images)} {split} pictures cannot be read: left out")
        kept_Q = ~unreadable_G[text_images_Q]
        texts, spoken, text_images_Q = texts[kept_Q], spoken[kept_Q], text_images_Q[kept_Q]
        text_images_Q = (np.cumsum(~unreadable_G) - 1)[text_images_Q]
        images, image_GD = images[~unreadable_G], image_GD[~unreadable_G]
    groups_G, strata_G = captions.groups[images], captions.strata[images]
    order = [language for language in ("en", *sorted(set(spoken) - {"en"})) if language in set(spoken)]
    wanted = order if languages == "all" else list(languages)
    silent = [language for language in wanted if language not in set(spoken)]
    if silent or not wanted:  # recalls of no queries would be no numbers
        named = ", ".join(silent) or "any language"
        raise DataError(f"{captions.folder}: no readable {split} picture has a caption in {named}")
    text_QD = embed.teacher(list(texts)) if tower == "teacher" else embed.student(list(texts))
    results = {}
    for language in wanted:
        own = spoken == language
        results[str(language)] = score(image_GD, text_QD[own], groups_G, text_images_Q[own], strata_G)
    if teacher_language in set(captions.languages):
        own_rows = captions.select(split, [str(teacher_language)])
        place = {int(image): row for row, image in enumerate(images)}
        known = [row for row in own_rows if int(captions.images[row]) in place]
        text_images = np.array([place[int(captions.images[row])] for row in known])
        teacher_QD = embed.teacher([str(captions.texts[row]) for row in known])
        results = {"teacher": score(image_GD, teacher_QD, groups_G, text_images, strata_G), **results}
    return results


class Embedder:
    """Normalised embeddings of a model as arrays; what frozen towers gave before is read from the store."""

    def __init__(self, model: MultilingualClip, store: Store) -> None:
        self._model = model
        self._frozen = Frozen(model, store)
        self.say = store.say

    def images(self, captions: Captions, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image embeddings, float32 (N, D), and which pictures could not be read, bool (N,)."""
        features = self._frozen.images(captions, images)
        return self._project("clip_projector", features.take()), features.unreadable()

    def teacher(self, texts: list[str]) -> np.ndarray:
        """The teacher's text embeddings, float32 (N, D)."""
        return self._project("clip_projector", self._frozen.teacher_texts(texts).take())

    def student(self, texts: list[str]) -> np.ndarray:
        """Student embeddings, float32 (N, D)."""
        model = self._model
        tokens = model.student_tokens(texts)
        if model.projector.blocks is None:
            return self._project("projector.head", self._frozen.pooled(tokens).take())
        if not (self._frozen.store.lasts("encoder") and self._frozen.store.tokens):
            return model.encode_text(texts).numpy()
        try:
            states = self._frozen.token_states(tokens)
        except NoRoom:
            return model.encode_text(texts).numpy()
        parts = np.array_split(np.arange(len(texts)), range(BATCH, len(texts), BATCH))
        return np.concatenate([self._project("projector", *states.padded(part)) for part in parts])

    def _project(self, name: str, *inputs: Tensor) -> np.ndarray:
        module, device = self._model.get_submodule(name), self._model.device
        with evaluating(module):
            embeddings = F.normalize(module(*(tensor.to(device) for tensor in inputs)).float(), dim=-1)
        return np.asarray(embeddings.cpu().numpy())


def summary(results: dict[str, Retrieval]) -> dict[str, float]:
    """Flat numbers for a log: the teacher's line, the mean over languages, each language's T2I R@1."""
    students = {language: result.scores() for language, result in results.items() if language != "teacher"}
    flat = {f"{language}_t2i_r1": scores["t2i_r1"] for language, scores in students.items()}
    names = next(iter(students.values()), {})
    means = {f"mean_{name}": float(np.mean([scores[name] for scores in students.values()])) for name in names}
    teacher = {f"teacher_{k}": v for k, v in results["teacher"].scores().items()} if "teacher" in results else {}
    return {**means, **teacher, **flat}


def evaluator(captions: Captions, split: str, languages: Sequence[str] | str, metric: str | None = None) -> Any:
    """What a run calls while training: (model, store, stage) -> numbers for the log.

    `score` is the metric, or what the stage is about: the student's mean T2I R@1 if it trains the student, else the
    teacher's.

    Raises:
        RecipeError: there is no such metric; those that there are are named.
    """

    def score_stage(model: MultilingualClip, store: Store, stage: Stage) -> dict[str, float]:
        values = summary(evaluate(model, captions, split, languages, store=store))
        student = any("student_text" in edge for edge in stage.edges)
        name = metric or ("mean_t2i_r1" if student else "teacher_t2i_r1")
        name = name if name in values else f"mean_{name}"
        if name not in values:
            raise RecipeError(f"evaluation.metric: there is no {metric}; there are {', '.join(values)}")
        return {"score": values[name], **values}

    return score_stage
