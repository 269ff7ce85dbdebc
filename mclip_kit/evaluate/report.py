"""Evaluations for people: a table for the terminal, results.json, and the rows of retrieval.png."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mclip_kit.data.captions import Captions
from mclip_kit.evaluate.picture import Row
from mclip_kit.evaluate.retrieval import Embedder, Retrieval
from mclip_kit.features.store import Store
from mclip_kit.towers.model import MultilingualClip

COLUMNS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "mean_recall")
HEADS = ("T2I@1", "@5", "@10", "I2T@1", "@5", "@10", "mean")
TEACHER = "teacher"

Results = dict[str, Retrieval]
"""Language, or `teacher`, -> its ranks."""


def as_json(results: Results, trained: Sequence[str], captions: Captions, split: str) -> dict[str, Any]:
    """Everything that the table shows, and the strata, as plain numbers."""
    some = next(iter(results.values()))
    return {
        "data": str(captions.folder),
        "split": split,
        "images": some.gallery,
        "trained_languages": list(trained),
        "scores": {name: result.scores() for name, result in results.items()},
        "strata": {
            str(stratum): {name: result.scores(str(stratum)) for name, result in results.items()}
            for stratum in np.unique(some.strata_G)
        },
    }


def mean_scores(results: Results, languages: Sequence[str], stratum: str | None = None) -> dict[str, float]:
    """The mean over languages of each score."""
    scores = [results[language].scores(stratum) for language in languages]
    return {name: float(np.mean([score[name] for score in scores])) for name in COLUMNS}


def table(results: Results, trained: Sequence[str], title: str) -> str:
    """Recalls in percent: the teacher's English, every language, and means with their strata."""
    languages = [name for name in results if name != TEACHER]
    seen = [language for language in languages if language in trained]
    unseen = [language for language in languages if language not in trained]
    lines = [title, f"{'':26}" + "".join(f"{head:>8}" for head in HEADS)]
    if TEACHER in results:
        lines.append(_line("teacher's own text, en", results[TEACHER].scores()))
    lines += [
        _line(f"  {name}{'' if name in trained else '  never trained'}", results[name].scores())
        for name in [*seen, *unseen]
    ]
    for label, group in (("trained", seen), ("never trained", unseen)):
        if group:
            lines.append(_line(f"mean of {len(group)} {label}", mean_scores(results, group)))
            strata = np.unique(results[group[0]].strata_G)
            lines += [
                _line(f"    {s} ({np.sum(results[group[0]].strata_G == s)})", mean_scores(results, group, str(s)))
                for s in (strata if len(strata) > 1 else ())
            ]
    chance = 100 / next(iter(results.values())).gallery
    return "\n".join([*lines, f"percent; chance @1 is {chance:.2f}"])


def comparison(models: Sequence[tuple[str, Results, Sequence[str]]]) -> str:
    """One table of several models, side by side; `°` marks languages that a model was never trained on.

    Args:
        models: name, results and trained languages of each.
    """
    names = list(dict.fromkeys(name for _, results, _ in models for name in results if name != TEACHER))
    strata = np.unique(next(iter(models[0][1].values())).strata_G)
    rows: list[tuple[str, list[list[str]], str | None]] = []
    for name in (TEACHER, *names):
        label = "teacher, en" if name == TEACHER else name
        rows.append((label, [[name] if name in results else [] for _, results, _ in models], None))
    for label, wanted in (("mean, trained", True), ("mean, never trained °", False)):
        groups = [[n for n in names if n in results and (n in trained) == wanted] for _, results, trained in models]
        rows.append((label, groups, None))
        rows += [(f"    {stratum}", groups, str(stratum)) for stratum in (strata if len(strata) > 1 else ())]
    heads = "".join(f"{f'[{number}] T2I@1':>12}{'@10':>8}{'mean':>8}" for number in range(1, len(models) + 1))
    lines = [*(f"[{number}] {name}" for number, (name, _, _) in enumerate(models, 1)), f"{'':22}{heads}"]
    for label, groups, part in rows:
        cells = [
            _cells(results, group, trained, part) for (_, results, trained), group in zip(models, groups, strict=True)
        ]
        lines.append(f"{label:22}{''.join(cells)}")
    return "\n".join(lines)


def _cells(results: Results, names: Sequence[str], trained: Sequence[str], stratum: str | None) -> str:
    if not names:
        return " " * 28
    scores = mean_scores(results, names, stratum)
    mark = " " if names[0] in trained or names[0] == TEACHER else "°"
    return f"{scores['t2i_r1']:11.1f}{mark}{scores['t2i_r10']:8.1f}{scores['mean_recall']:8.1f}"


def _line(label: str, scores: dict[str, float]) -> str:
    return f"{label:26}" + "".join(f"{scores[column]:8.1f}" for column in COLUMNS)


def picture_rows(
    model: MultilingualClip, captions: Captions, split: str, languages: Sequence[str], top: int = 5, seed: int = 1
) -> list[Row]:
    """One query a language, drawn by the seed and not by success, and the first pictures that the model finds."""
    draw = np.random.default_rng(seed)
    embed = Embedder(model, Store())
    images = np.unique(captions.images[captions.select(split, languages)])
    image_GD, unreadable_G = embed.images(captions, images)
    images, image_GD = images[~unreadable_G], image_GD[~unreadable_G]
    rows = []
    for language in languages:
        own = captions.select(split, [language])
        row = own[draw.integers(len(own))]
        scores_G = (embed.student([str(captions.texts[row])]) @ image_GD.T)[0]
        found = images[np.argsort(-scores_G, kind="stable")[:top]]
        right = captions.groups[found] == captions.groups[captions.images[row]]
        pictures = [np.asarray(captions.picture(int(image))) for image in found]
        rows.append(Row(language, str(captions.texts[row]), pictures, [bool(hit) for hit in right]))
    return rows
