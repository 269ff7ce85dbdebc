"""`mclip-kit eval --dims`: retrieval by the first numbers of embeddings alone, for models of Matryoshka losses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.errors import RecipeError
from mclip_kit.evaluate.base import ResultRows
from mclip_kit.evaluate.report import tables
from mclip_kit.evaluate.retrieval import STUDENT, TEACHER, Retrieval, evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip

FULL = "full"


def check(dims: Sequence[int | str], name: str, model: MultilingualClip) -> None:
    """RecipeError if a width is above that of a model's embeddings; `name`: of the model."""
    for width in dims:
        if isinstance(width, int) and width > model.width:
            raise RecipeError(f"--dims {width}: embeddings of {name} have {model.width} numbers; leave it out")


def by_width(
    model: MultilingualClip, dims: Sequence[int | str], cache: FeatureCache, full: dict[str, Retrieval], *how: Any
) -> dict[int, dict[str, Retrieval]]:
    """Width -> ranks by language, of embeddings that are cut there and L2-normalised.

    Args:
        dims: numbers, or `full`.
        cache: has the features of frozen towers already, so that only heads are computed again.
        full: the ranks at full width.
        how: captions, split, languages and protocol.
    """
    captions, split, languages, protocol = how
    widths = [model.width if width == FULL else int(width) for width in dims]
    return {
        width: full
        if width == model.width
        else evaluate(model, captions, split, languages, cache=cache, protocol=protocol, dims=width)
        for width in widths
    }


def rows(found: dict[int, dict[str, Retrieval]], about: dict[str, Any], trained: Sequence[str]) -> ResultRows:
    """Entries of `widths` in results.json: those of `results` with their width, without strata."""
    return [
        {"dims": width, **row, "strata": {}}
        for width, results in found.items()
        for row in tables.retrieval_rows(results, about, STUDENT, trained)
    ]


def table(found: dict[int, dict[str, Retrieval]], trained: Sequence[str], dims: Sequence[int], title: str) -> str:
    """T2I R@1 by width, in percent: the teacher, English, and the means.

    Args:
        dims: widths for which the model was trained besides its full one; others are marked.
    """
    some = next(iter(found.values()))
    own = [name for name in some if name != TEACHER]
    groups = {
        "teacher": [name for name in some if name == TEACHER],
        TEACHER_LANGUAGE: [name for name in own if name == TEACHER_LANGUAGE],
        "trained": [name for name in own if name in trained],
        "never trained": [name for name in own if name not in trained],
    }
    groups = {label: names for label, names in groups.items() if names}
    lines = [title, f"{'width':10}" + "".join(f"{label:>15}" for label in groups)]
    for width, results in found.items():
        cells = [np.mean([results[name].scores()["t2i_r1"] for name in names]) for names in groups.values()]
        mark = "" if width in dims or width == max(found) else " °"
        lines.append(f"{f'{width:,}{mark}':10}" + "".join(f"{cell:15.1f}" for cell in cells))
    note = "; ° not trained for this width" if any("°" in line for line in lines) else ""
    return "\n".join([*lines, f"T2I R@1 in percent, means over languages, of embeddings that are cut{note}"])
