"""Image-text retrieval: metrics of arrays, and the evaluation of a model in many languages."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.config.stages import TriangleStage
from mclip_kit.data.captions import Captions
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.evaluate.ranks import both_ranks, median_rank, recall
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.features.table import NoRoom
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.multilingual_clip import MultilingualClip

BATCH = 256
MEDIAN = "median_rank"


@dataclass(frozen=True)
class Retrieval:
    """Ranks of one tower in one language.

    Attributes:
        t2i_Q: rank of the right picture of each caption.
        i2t_G: rank of the right caption of each picture that has one in this language.
        strata_Q, strata_G: label of each caption's picture, and of each of those pictures.
        gallery: number of pictures that a caption is compared with.
        protocol: how ranks were counted, see `ranks.both_ranks`.
        groups_Q, groups_G: group of each caption's picture, and of each of those pictures.
    """

    t2i_Q: np.ndarray
    i2t_G: np.ndarray
    strata_Q: np.ndarray
    strata_G: np.ndarray
    gallery: int
    protocol: str = "any"
    groups_Q: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    groups_G: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def captions(self) -> int:
        """Number of captions that a picture is compared with."""
        return len(self.t2i_Q)

    def scores(self, stratum: str | None = None) -> dict[str, float]:
        """Recalls both ways in percent, their mean, and median ranks; of one stratum's queries, if given."""
        kept_Q = slice(None) if stratum is None else self.strata_Q == stratum
        kept_G = slice(None) if stratum is None else self.strata_G == stratum
        both = {"t2i": self.t2i_Q[kept_Q], "i2t": self.i2t_G[kept_G]}
        recalls = {f"{way}_{name}": value for way, ranks in both.items() for name, value in recall(ranks).items()}
        medians = {f"{way}_{MEDIAN}": median_rank(ranks) for way, ranks in both.items()}
        return {**recalls, "mean_recall": float(np.mean(list(recalls.values()))), **medians}


def score(
    image_GD: np.ndarray,
    text_QD: np.ndarray,
    image_groups_G: np.ndarray,
    text_images_Q: np.ndarray,
    strata_G: np.ndarray,
    protocol: str = "any",
) -> Retrieval:
    """Both directions.

    Args:
        image_GD, text_QD: L2-normalised embeddings.
        image_groups_G: pictures with the same number are the same answer.
        text_images_Q: the picture of each caption, a row of image_GD.
        strata_G: label of each picture.
        protocol: `any`: a picture has found its captions if any of them is among the first k (CLIP, Karpathy's split).
            `xtd`: a picture has one caption, as in XTD10 and its published figures. `mclip`: the official mCLIP
            script's, which counts wrong pictures and not wrong captions, and so is lenient: see `ranks.both_ranks`.
    Raises:
        DataError: there are no pictures or captions, their widths differ, there is no such protocol, or a picture has
            several captions where `xtd` has one.
    """
    if protocol == "xtd" and len(text_images_Q):
        captions_G = np.bincount(text_images_Q)
        most = int(captions_G.argmax())
        if captions_G[most] > 1:
            raise DataError(
                f"protocol xtd takes one caption a picture and picture {most} has {captions_G[most]}: keep one of "
                "each, or say protocol any"
            )
    text_groups_Q = image_groups_G[text_images_Q]
    t2i_Q, i2t_G = both_ranks(text_QD, image_GD, text_groups_Q, image_groups_G, protocol)
    named_G = np.isin(image_groups_G, text_groups_Q)
    return Retrieval(
        t2i_Q=t2i_Q,
        i2t_G=i2t_G[named_G],
        strata_Q=strata_G[text_images_Q],
        strata_G=strata_G[named_G],
        gallery=len(image_GD),
        protocol=protocol,
        groups_Q=text_groups_Q,
        groups_G=image_groups_G[named_G],
    )


def evaluate(
    model: MultilingualClip,
    captions: Captions,
    split: str,
    languages: Sequence[str] | str = "all",
    teacher_language: str | None = "en",
    store: FeatureCache | None = None,
    protocol: str = "any",
    tower: Literal["student", "teacher"] = "student",
) -> dict[str, Retrieval]:
    """Retrieval among a split's pictures, by language; the teacher's own text tower comes as `teacher`.

    Embeddings that are not finite numbers are never found, and how many there are is said.

    Args:
        teacher_language: the language of the teacher's line; None leaves it out.
        store: features that are already known and stay valid.
        protocol: see `score`.
        tower: which one encodes the captions of `languages`.
    Raises:
        DataError: there is no such split, language or protocol, or the protocol does not fit the captions.
    """
    rows = captions.select(split, languages)
    images, text_images_Q = np.unique(captions.images[rows], return_inverse=True)
    texts, spoken = captions.texts[rows], captions.languages[rows]
    embed = Embedder(model, store or FeatureCache())
    image_GD, unreadable_G = embed.images(captions, images)
    if unreadable_G.any():  # nobody can look for these
        embed.log(f"{captions.folder}: {unreadable_G.sum()} of {len(images)} {split} pictures cannot be read: left out")
        kept_Q = ~unreadable_G[text_images_Q]
        texts, spoken, text_images_Q = texts[kept_Q], spoken[kept_Q], text_images_Q[kept_Q]
        text_images_Q = (np.cumsum(~unreadable_G) - 1)[text_images_Q]
        images, image_GD = images[~unreadable_G], image_GD[~unreadable_G]
    groups_G, strata_G = captions.groups[images], captions.strata[images]
    embed.count_odd("image", image_GD)

    def scored(name: str, text_QD: np.ndarray, text_images_Q: np.ndarray) -> Retrieval:
        try:
            return score(image_GD, text_QD, groups_G, text_images_Q, strata_G, protocol)
        except DataError as error:
            raise DataError(f"{captions.folder}, {split}, {name}: {error}") from None

    text_QD = embed.teacher(list(texts)) if tower == "teacher" else embed.student(list(texts))
    embed.count_odd(f"{tower} text", text_QD)
    order = [language for language in ("en", *sorted(set(spoken) - {"en"})) if language in set(spoken)]
    results = {}
    for language in order if languages == "all" else languages:
        own = spoken == language
        results[str(language)] = scored(str(language), text_QD[own], text_images_Q[own])
    if teacher_language in set(captions.languages[captions.select(split)]):
        own_rows = captions.select(split, [str(teacher_language)])
        place = {int(image): row for row, image in enumerate(images)}
        known = [row for row in own_rows if int(captions.images[row]) in place]
        text_images = np.array([place[int(captions.images[row])] for row in known], np.int64)
        teacher_QD = embed.teacher([str(captions.texts[row]) for row in known])
        embed.count_odd("teacher text", teacher_QD)
        results = {"teacher": scored("teacher", teacher_QD, text_images), **results}
    return results


class Embedder:
    """Normalised embeddings of a model as arrays; what frozen towers gave before is read from the store."""

    def __init__(self, model: MultilingualClip, store: FeatureCache) -> None:
        self._model = model
        self._frozen = FrozenTowers(model, store)
        self.log = store.log

    def count_odd(self, tower: str, embedding_ND: np.ndarray) -> None:
        """Say how many embeddings of a tower are not finite numbers, if any."""
        odd = int((~np.isfinite(embedding_ND).all(1)).sum())
        if odd:
            self.log(f"{tower}: {odd} of {len(embedding_ND)} embeddings are not finite numbers; they are never found")

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
        if not (self._frozen.cache.is_persistent("encoder") and self._frozen.cache.tokens):
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
    """Flat recalls for a log: the teacher's, the mean over languages, each language's T2I R@1."""
    recalls = {name: {k: v for k, v in result.scores().items() if MEDIAN not in k} for name, result in results.items()}
    teacher = {f"teacher_{name}": value for name, value in recalls.pop("teacher", {}).items()}
    names = next(iter(recalls.values()), {})
    means = {f"mean_{name}": float(np.mean([own[name] for own in recalls.values()])) for name in names}
    return {**means, **teacher, **{f"{language}_t2i_r1": own["t2i_r1"] for language, own in recalls.items()}}


def evaluator(
    captions: Captions,
    split: str,
    languages: Sequence[str] | str,
    metric: str | None = None,
    protocol: str = "any",
) -> Any:
    """What a run calls while training: (model, store, stage) -> numbers for the log.

    `score` is the metric, or what the stage is about: the student's mean T2I R@1 if it trains the student, else the
    teacher's.

    Raises:
        RecipeError: there is no such metric; those that there are are named.
    """

    def score_stage(model: MultilingualClip, store: FeatureCache, stage: TriangleStage) -> dict[str, float]:
        values = summary(evaluate(model, captions, split, languages, store=store, protocol=protocol))
        student = any("student_text" in edge for edge in stage.edges)
        name = metric or ("mean_t2i_r1" if student else "teacher_t2i_r1")
        name = name if name in values else f"mean_{name}"
        if name not in values:
            raise RecipeError(f"evaluation.metric: there is no {metric}; there are {', '.join(values)}")
        return {"score": values[name], **values}

    return score_stage
