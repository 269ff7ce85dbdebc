"""Image-text retrieval: metrics of arrays, and the scores of a model in many languages.

Shapes: Q captions, G pictures, D embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mclip_kit.config.recipe import Recipe
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.evaluate.base import Metric, Opened, Validation
from mclip_kit.evaluate.embedder import Embedder, GatheredEmbedder, Part, part_of
from mclip_kit.evaluate.ranks import KS, both_ranks, median_rank, recall
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.progress import SOON, tqdm

TEACHER, STUDENT = "teacher", "student"  # towers
WAYS = {"t2i": ("image", "text-to-image"), "i2t": ("text", "image-to-text")}
"""Direction -> what is looked for, by which clip-benchmark names the direction; and the direction in words."""
SENTENCES = {("t2i", 1): "of captions find their own picture first"}
RECALLS = tuple(
    Metric(
        f"{target}_retrieval_recall@{k}",
        f"{way.upper()} R@{k}",
        f"{words} R@{k}",
        drawn=k == 1,
        log_name=f"{way}_r{k}",
        sentence=SENTENCES.get((way, k), ""),
    )
    for way, (target, words) in WAYS.items()
    for k in KS
)
MEAN_RECALL = Metric("mean_recall", "mean recall", "mean recall", log_name="mean_recall")
"""The mean of the six recalls."""
MEDIANS = tuple(
    Metric(
        f"{target}_median_rank",
        f"{way.upper()} MedR",
        f"{words} median rank",
        fraction=False,
        log_name=f"{way}_median_rank",
        averaged=False,
    )
    for way, (target, words) in WAYS.items()
)
METRICS = (*RECALLS, MEAN_RECALL, *MEDIANS)
COMPARED = (RECALLS[0], RECALLS[len(KS)], MEAN_RECALL)
"""The metrics that are compared with a baseline: R@1 both ways, and mean recall."""


@dataclass(frozen=True)
class Retrieval:
    """Ranks of one tower in one language.

    Attributes:
        t2i_Q: rank of the right picture of each caption.
        i2t_G: rank of the right caption of each picture that has one in this language.
        strata_Q, strata_G: stratum of each caption's picture, and of each of those pictures.
        gallery: number of pictures that a caption is compared with.
        protocol: how ranks were counted, see `score`.
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
        """`METRICS` by their names in a log: recalls in percent, their mean, median ranks.

        Args:
            stratum: count only the queries of this stratum; None: all queries.
        """
        kept_Q = slice(None) if stratum is None else self.strata_Q == stratum
        kept_G = slice(None) if stratum is None else self.strata_G == stratum
        both = {"t2i": self.t2i_Q[kept_Q], "i2t": self.i2t_G[kept_G]}
        recalls = {f"{way}_{name}": value for way, ranks in both.items() for name, value in recall(ranks).items()}
        medians = {f"{way}_median_rank": median_rank(ranks) for way, ranks in both.items()}
        return {**recalls, "mean_recall": float(np.mean(list(recalls.values()))), **medians}


def score(
    image_GD: np.ndarray,
    text_QD: np.ndarray,
    image_groups_G: np.ndarray,
    text_images_Q: np.ndarray,
    strata_G: np.ndarray,
    protocol: str = "any",
) -> Retrieval:
    """Ranks of both directions.

    Args:
        image_GD, text_QD: L2-normalised embeddings.
        image_groups_G: pictures with the same number count as the same answer.
        text_images_Q: the picture of each caption, a row of image_GD.
        strata_G: stratum of each picture.
        protocol: `any`: a picture counts as found if any of its captions is among the first k (CLIP; the Karpathy
            split). `xtd`: every picture has one caption, as in XTD10 and its published figures. `mclip`: as the
            official mCLIP script, which counts wrong pictures, not wrong captions, and so is lenient: see
            `ranks.both_ranks`. `language`: as `any`, among the pictures that have a caption in the language only, as
            for corpora that publish a test set for each language (WIT in IGLUE); captions are those of one language.
    Raises:
        DataError: there are no pictures or no captions, the widths differ, the protocol is unknown, or a picture has
            several captions under `xtd`.
    """
    if protocol == "xtd" and len(text_images_Q):
        captions_G = np.bincount(text_images_Q)
        most = int(np.argmax(captions_G))
        if captions_G[most] > 1:
            raise DataError(
                f"protocol xtd takes one caption a picture and picture {most} has {captions_G[most]}: keep one caption "
                "of each picture, or use protocol any"
            )
    if protocol == "language":
        kept, text_images_Q = np.unique(text_images_Q, return_inverse=True)
        image_GD, image_groups_G, strata_G = image_GD[kept], image_groups_G[kept], strata_G[kept]
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
    teacher_language: str | None = TEACHER_LANGUAGE,
    cache: FeatureCache | None = None,
    protocol: str = "any",
    tower: Literal["student", "teacher"] = "student",
    parts: Sequence[Part] = (),
    dims: int | None = None,
) -> dict[str, Retrieval]:
    """Retrieval among the pictures of a split, by language; `teacher` is the teacher's own text tower.

    The gallery is all pictures of the split, with or without captions in the languages that are asked for, so that the
    figures of a language do not depend on the others. Pictures that cannot be read are left out, with their captions.
    Non-finite embeddings count as misses. The numbers of both are logged.

    Args:
        teacher_language: the language of the `teacher` entry; None leaves the entry out.
        cache: features of frozen towers; those that it has are read, not computed.
        protocol: see `score`.
        tower: the text tower that encodes the captions of `languages`.
        parts: the embeddings, if several processes have computed them, see `share`.
        dims: without parts: cut embeddings to so many numbers; None: whole ones.
    Raises:
        DataError: the split, a language or the protocol is unknown, or the protocol does not fit the captions.
    """
    rows_Q = captions.select(split, languages)
    cache = cache or FeatureCache()
    embed = GatheredEmbedder(model, cache, parts) if parts else Embedder(model, cache, dims)
    if not parts:
        embed.hash_towers()
    scored = _scorer(embed, captions, split, protocol)
    found = scored(tower, rows_Q)
    if languages == "all":
        found = dict(sorted(found.items(), key=lambda item: (item[0] != TEACHER_LANGUAGE, item[0])))
    results = {str(language): found[str(language)] for language in (found if languages == "all" else languages)}
    if teacher_language in captions.languages.present(captions.select(split)):
        own = scored(TEACHER, captions.select(split, [str(teacher_language)]))
        results = {TEACHER: own[str(teacher_language)], **results}
    return results


def share(
    model: MultilingualClip,
    captions: Captions,
    split: str,
    languages: Sequence[str] | str,
    cache: FeatureCache,
) -> Part:
    """This process's part of the embeddings that `evaluate` ranks, of the student and of the teacher."""
    texts = {STUDENT: captions.texts[captions.select(split, languages)].tolist()}
    if TEACHER_LANGUAGE in captions.languages.present(captions.select(split)):
        texts[TEACHER] = captions.texts[captions.select(split, [TEACHER_LANGUAGE])].tolist()
    return part_of(Embedder(model, cache), captions, captions.gallery(split), texts)


def _scorer(
    embed: Embedder, captions: Captions, split: str, protocol: str
) -> Callable[[str, np.ndarray], dict[str, Retrieval]]:
    """(text tower, rows of the caption table) -> ranks among all pictures of the split, by language."""
    images_G = captions.gallery(split)
    image_GD, unreadable_G = embed.images(captions, images_G)
    if unreadable_G.any():
        embed.log(
            f"{captions.folder}: {unreadable_G.sum()} of {len(images_G)} {split} pictures cannot be read: left out"
        )
        images_G, image_GD = images_G[~unreadable_G], image_GD[~unreadable_G]
    groups_G, strata_G = captions.groups[images_G], captions.strata[images_G]
    embed.log_nonfinite("image", image_GD)

    def scored(tower: str, rows_Q: np.ndarray) -> dict[str, Retrieval]:
        names = dict.fromkeys(captions.languages[rows_Q].tolist())
        rows_Q = rows_Q[np.isin(captions.images[rows_Q], images_G)]
        text_QD = (embed.teacher if tower == TEACHER else embed.student)(captions.texts[rows_Q].tolist())
        embed.log_nonfinite(f"{tower} text", text_QD)
        found = {}
        for name in tqdm(names, f"rank: {tower}", unit="language", leave=False, delay=SOON):
            own_Q = captions.languages[rows_Q] == name
            places_Q = np.searchsorted(images_G, captions.images[rows_Q[own_Q]])
            try:
                found[str(name)] = score(image_GD, text_QD[own_Q], groups_G, places_Q, strata_G, protocol)
            except DataError as error:
                raise DataError(f"{captions.folder}, {split}, {name}: {error}") from None
        return found

    return scored


def log_values(results: dict[str, Retrieval]) -> dict[str, float]:
    """Recalls for a log, in percent: means over languages, the teacher's, and T2I R@1 of each language."""
    logged = [metric.log_name for metric in (*RECALLS, MEAN_RECALL)]
    scores = {language: result.scores() for language, result in results.items()}
    teacher = scores.pop(TEACHER, None)
    means = {f"mean_{name}": float(np.mean([own[name] for own in scores.values()])) for name in logged if scores}
    return {
        **means,
        **({f"{TEACHER}_{name}": teacher[name] for name in logged} if teacher else {}),
        **{f"{language}_t2i_r1": own["t2i_r1"] for language, own in scores.items()},
    }


def _open(recipe: Recipe, stages: Sequence[Any]) -> Opened:
    wanted = recipe.evaluation
    assert wanted
    if recipe.data.captions is None:
        raise RecipeError("evaluation needs data.captions: pictures and captions to score on; give them")
    captions = read_captions(recipe.data.captions)
    split, languages = wanted.split, wanted.languages
    try:
        known = captions.languages.present(captions.select(split))
    except DataError as error:
        raise RecipeError(f"evaluation.split: {error}") from None
    try:
        rows = captions.select(split, languages)
    except DataError as error:
        raise RecipeError(f"evaluation.languages: {error}") from None
    scored = captions.languages.present(rows)
    names = names_of(scored, with_teacher=TEACHER_LANGUAGE in known)
    kept = captions.only(split)

    def share_retrieval(model: Any, cache: FeatureCache, task: Any) -> Part:
        return share(model, kept, split, languages, cache)

    def score_retrieval(model: Any, cache: FeatureCache, task: Any, parts: Sequence[Part] = ()) -> dict[str, Any]:
        return log_values(evaluate(model, kept, split, languages, cache=cache, parts=parts))

    size = f"{len(kept.gallery(split)):,} pictures"
    data = f"{split} of {recipe.data.captions} ({size})"
    return Opened(score_retrieval, lambda stage: names, data, share_retrieval)


def names_of(languages: Sequence[str], with_teacher: bool) -> dict[str, str]:
    """Metric as a recipe names it -> value of the log; means over languages go without `mean_`."""
    logged = [metric.log_name for metric in (MEAN_RECALL, *RECALLS)]
    means = {name: f"mean_{name}" for name in logged}
    own = [f"{language}_t2i_r1" for language in languages]
    teacher = [f"{TEACHER}_{name}" for name in logged] if with_teacher else []
    return means | {name: name for name in (*own, *teacher)}


def default_metric(task: Any) -> str:
    """Mean text-to-image R@1 of the languages that a stage teaches the student; of the teacher if it teaches none."""
    return "mean_t2i_r1" if task.languages else f"{TEACHER}_t2i_r1"


SHOWN = ("mean_t2i_r1", "mean_t2i_r10", "teacher_t2i_r1")
VALIDATION = Validation(_open, default_metric, (*RECALLS, MEAN_RECALL), SHOWN)
