"""The baseline `closed-form`: what the best linear map of the encoder's pooled states finds, without training.

Its targets are the teacher's embeddings of English captions (ridge regression, see `models.closed_form`). A trained
student should be better than this one matrix.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mclip_kit.data.captions import Captions
from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.data.sequences import blocks_of
from mclip_kit.errors import DataError
from mclip_kit.evaluate.checks import CHOSEN, CLOSED_FORM, FITTED
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.retrieval import Retrieval, evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.closed_form import Moments, set_best
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import build_projector

CAPTIONS, BLOCK = 100_000, 4096  # at most; rows that are read at once


def ranks(
    model: MultilingualClip,
    cache: FeatureCache,
    captions: Captions,
    split: str,
    languages: Sequence[str] | str,
    protocol: str = "any",
    name: str = "",
) -> dict[str, Retrieval]:
    """Ranks by language of the model with the closed form in place of its projector; `name`: see `closed_form`."""
    student = closed_form(model, cache, captions, name)
    return evaluate(student, captions, split, languages, None, cache, protocol=protocol)


def closed_form(model: MultilingualClip, cache: FeatureCache, captions: Captions, name: str = "") -> MultilingualClip:
    """The model with another projector: the ridge map from its encoder's pooled states to the teacher's space.

    It is fitted on training captions in the languages that the model was trained on (all, if none is known), each with
    the teacher's embedding of an English caption of its picture. Lambda is the one with the best mean T2I R@1 of those
    languages on the validation split.

    Args:
        model: it stays as it is, and shares its other towers with the result.
        cache: features of frozen towers.
        captions: have English captions for training, and a validation split.
        name: of the model, for the line that is logged.
    Raises:
        DataError: no caption in those languages has an English one of the same picture.
    """
    splits = {name: captions.languages.present(captions.select(name)) for name in (FITTED, CHOSEN)}
    known = {name: [own for own in model.trained_languages if own in found] or found for name, found in splits.items()}
    moments, count = _moments(model, cache, captions, known[FITTED])
    projector = build_projector("linear", model.projector.pooling, model.encoder.config, model.width)
    student = copy.copy(model)
    student._modules = {**model._modules, "projector": projector.to(model.device).eval()}

    def score() -> float:
        found = evaluate(student, captions, CHOSEN, known[CHOSEN], None, cache)
        return float(np.mean([own.scores()["t2i_r1"] for own in found.values()]))

    strength, by_lambda = set_best(projector, moments, score)
    rows = f"{moments.rows:,}" if moments.rows == count else f"{moments.rows:,} of {count:,}"
    whose = f"{CLOSED_FORM} of {name}" if name else CLOSED_FORM
    cache.log(
        f"{whose}: ridge regression on {rows} {FITTED} captions in {', '.join(known[FITTED])}; lambda "
        f"{strength:g} ({CHOSEN} T2I R@1 by lambda: {by_lambda})"
    )
    return student


def _moments(
    model: MultilingualClip, cache: FeatureCache, captions: Captions, languages: list[str]
) -> tuple[Moments, int]:
    """Of pooled states of captions, and the teacher's embeddings of English captions of the same pictures.

    Returns:
        The moments, and the number of captions in the languages, of which they have at most `CAPTIONS`, evenly spaced,
        whose picture has an English one.
    """
    english_R = captions.select(FITTED, [TEACHER_LANGUAGE])
    images_I, first_I = np.unique(captions.images[english_R], return_index=True)
    rows_N = captions.select(FITTED, languages)
    count = len(rows_N)
    rows_N = rows_N[np.isin(captions.images[rows_N], images_I)]
    if not len(rows_N):
        raise DataError(
            f"{captions.folder}: no {FITTED} caption in {', '.join(languages)} is of a picture with one in "
            f"{TEACHER_LANGUAGE}: {CLOSED_FORM} has nothing to be fitted on"
        )
    rows_N = rows_N[np.linspace(0, len(rows_N) - 1, min(len(rows_N), CAPTIONS)).astype(np.int64)]
    pictures_P, place_N = np.unique(np.searchsorted(images_I, captions.images[rows_N]), return_inverse=True)
    target_PD = Embedder(model, cache).teacher(captions.texts[english_R[first_I[pictures_P]]].tolist())
    features = FrozenTowers(model, cache).pooled(model.student_tokens(captions.texts[rows_N].tolist()))

    def block(part: slice) -> tuple[Tensor, Tensor]:
        own_B = np.arange(part.start, part.stop)
        return features.take(own_B).float(), torch.from_numpy(target_PD[place_N[own_B]])

    return Moments.of(block(part) for part in blocks_of(len(rows_N), BLOCK)), count
