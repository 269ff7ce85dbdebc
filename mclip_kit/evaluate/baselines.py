"""Baselines of a model: the teacher's own text tower, the closed form, translate-then-CLIP, or another model."""

from collections.abc import Callable, Sequence

from mclip_kit.data.captions import Captions
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate import closed_form
from mclip_kit.evaluate.checks import CLOSED_FORM, check_closed_form
from mclip_kit.evaluate.retrieval import TEACHER, Retrieval, evaluate
from mclip_kit.evaluate.translated import TRANSLATED
from mclip_kit.evaluate.translated import read_translations as read_translations
from mclip_kit.evaluate.translated import translated as translated
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.storage import fetch, place

Baseline = Callable[[MultilingualClip, FeatureCache, str], dict[str, Retrieval]]
"""(the model that is compared, its feature cache, its name for messages) -> the baseline's ranks by language."""


def baseline(
    name: str,
    captions: Captions,
    split: str,
    languages: Sequence[str] | str,
    protocol: str = "any",
    opened: Callable[[str], tuple[MultilingualClip, FeatureCache]] = lambda folder: (load(folder), FeatureCache()),
) -> Baseline:
    """A baseline by its name; its mistakes are found here, before anything is computed.

    Args:
        name: `teacher`: the model's teacher reads the captions as they are; `closed-form`: the best linear map on the
            model's encoder, see `closed_form`; `translated:FILE`: the teacher reads translations of the captions, see
            `read_translations`; or another model folder.
        opened: a folder -> its model and the cache of its vectors.
    Raises:
        RecipeError: the name is none of these.
        DataError: the table of translations is damaged, or lacks a caption.
    """
    if name == TEACHER or name.startswith(TRANSLATED):
        read = captions
        if name != TEACHER:
            read = translated(captions, place(name.removeprefix(TRANSLATED)), split, languages)
        return lambda model, cache, _: evaluate(
            model, read, split, languages, None, cache, tower="teacher", protocol=protocol
        )
    if name == CLOSED_FORM:
        check_closed_form(captions, split)
        return lambda model, cache, own: closed_form.ranks(model, cache, captions, split, languages, protocol, own)
    if not fetch(place(name)).is_dir():
        raise RecipeError(f"--baseline {name}: give teacher, {CLOSED_FORM}, translated:FILE or a model folder")
    other, own = opened(name)
    return lambda model, cache, _: evaluate(other, captions, split, languages, None, own, protocol=protocol)
