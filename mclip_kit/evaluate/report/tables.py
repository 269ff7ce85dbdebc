"""Tables of retrieval for the terminal, and its rows of results.json."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.evaluate.base import ResultRows, json_numbers
from mclip_kit.evaluate.bootstrap import RESAMPLES, Difference
from mclip_kit.evaluate.retrieval import COMPARED, MEAN_RECALL, METRICS, RECALLS, TEACHER, Retrieval

COLUMNS = (*RECALLS, MEAN_RECALL)
SIDE_BY_SIDE = (RECALLS[0], RECALLS[2], MEAN_RECALL)  # the columns of `comparison`
WIDTHS = {metric: max(8, len(metric.label) + 2) for metric in COLUMNS}  # characters

Results = dict[str, Retrieval]
"""Language, or `teacher`, -> its ranks."""
Scored = tuple[str, Results, Sequence[str]]
"""A model: its name, its results, the languages that it was trained on."""


def retrieval_rows(results: Results, about: dict[str, Any], tower: str, trained: Sequence[str] | None) -> ResultRows:
    """A row of results.json for each language, with clip-benchmark's names of metrics and recalls as fractions.

    In these names `image_retrieval` is text to image, and `text_retrieval` is image to text.

    Args:
        about: what all rows of the model share, see `base.Request.about`.
        tower: which tower encoded the texts, except in the row of `teacher`.
        trained: the languages that the student was trained on; None if that is not known.
    """
    rows = []
    for name, result in results.items():
        own = name == TEACHER
        strata = np.unique(result.strata_G)
        rows.append(
            about
            | {
                "language": TEACHER_LANGUAGE if own else name,
                "tower": TEACHER if own else tower,
                "n_images": result.gallery,
                "n_captions": result.captions,
                "protocol": result.protocol,
                "trained": None if own or trained is None else name in trained,
                "metrics": _metrics(result),
                "strata": {str(part): _metrics(result, str(part)) for part in (strata if len(strata) > 1 else ())},
            }
        )
    return rows


def distinct(rows: ResultRows) -> ResultRows:
    """Rows without duplicates: the teacher's English may come twice, by itself and as a baseline."""
    return list({(row["model"], row["tower"], row["language"]): row for row in rows}.values())


def _metrics(result: Retrieval, stratum: str | None = None) -> dict[str, float | None]:
    scores = result.scores(stratum)
    return json_numbers({metric.name: scores[metric.log_name] / (100 if metric.fraction else 1) for metric in METRICS})


def mean_scores(results: Results, languages: Sequence[str], stratum: str | None = None) -> dict[str, float]:
    """The mean over languages of each recall, by its name in a log, in percent."""
    scores = [results[language].scores(stratum) for language in languages]
    names = [metric.log_name for metric in COLUMNS]
    return {name: float(np.mean([score[name] for score in scores])) for name in names}


def table(results: Results, trained: Sequence[str], title: str) -> str:
    """A model's recalls in percent: the teacher, every language, and means with their strata.

    Args:
        trained: the languages that the model was trained on.
    """
    languages = [name for name in results if name != TEACHER]
    seen = [language for language in languages if language in trained]
    unseen = [language for language in languages if language not in trained]
    heads = "".join(f"{metric.label:>{WIDTHS[metric]}}" for metric in COLUMNS)
    lines = [title, f"{'':26}{heads}{'pictures':>10}{'captions':>10}"]
    if TEACHER in results:
        lines.append(_language(f"teacher's own text, {TEACHER_LANGUAGE}", results[TEACHER]))
    lines += [
        _language(f"  {name}{'' if name in trained else '  never trained'}", results[name]) for name in [*seen, *unseen]
    ]
    for label, group in (("trained", seen), ("never trained", unseen)):
        if group:
            lines.append(_line(f"mean of {len(group)} {label}", mean_scores(results, group)))
            strata = np.unique(results[group[0]].strata_G)
            lines += [
                _line(f"    {s} ({np.sum(results[group[0]].strata_G == s)})", mean_scores(results, group, str(s)))
                for s in (strata if len(strata) > 1 else ())
            ]
    return "\n".join([*lines, f"percent; {_size(results)}"])


def _size(results: Results) -> str:
    """The sizes of the gallery and of the captions, the score of chance, and what the heads mean."""
    some = next(iter(results.values()))
    pictures = _range(result.gallery for result in results.values())
    captions = _range(result.captions for result in results.values())
    chance = f"T2I R@1 by chance is {100 / max(result.gallery for result in results.values()):.2f}"
    words = "T2I: text-to-image, I2T: image-to-text, R@k: recall among the first k, mean recall: of the six"
    sizes = f"gallery of {pictures} pictures, {captions} captions a language, protocol {some.protocol}; {chance}"
    return f"{sizes}\n{words}"


def _range(counts: Iterable[int]) -> str:
    """Different counts, such as `1,000` or `5 to 1,000`."""
    found = sorted(set(counts))
    return " to ".join(f"{count:,}" for count in (found if len(found) == 1 else (found[0], found[-1])))


def comparison(models: Sequence[Scored]) -> str:
    """Several models side by side, in percent; `°` marks languages that a model was never trained on."""
    names = list(dict.fromkeys(name for _, results, _ in models for name in results if name != TEACHER))
    strata = np.unique(next(iter(models[0][1].values())).strata_G)
    rows: list[tuple[str, list[list[str]], str | None]] = []
    for name in (TEACHER, *names):
        label = f"teacher, {TEACHER_LANGUAGE}" if name == TEACHER else name
        rows.append((label, [[name] if name in results else [] for _, results, _ in models], None))
    for label, wanted in (("mean, trained", True), ("mean, never trained °", False)):
        groups = [[n for n in names if n in results and (n in trained) == wanted] for _, results, trained in models]
        rows.append((label, groups, None))
        rows += [(f"    {stratum}", groups, str(stratum)) for stratum in (strata if len(strata) > 1 else ())]
    first, *others = (metric.label for metric in SIDE_BY_SIDE)
    more = "".join(f"{label:>{max(9, len(label) + 2)}}" for label in others)
    heads = "".join(f"{f'[{number}] {first}':>12}{more}" for number in range(1, len(models) + 1))
    lines = [*(f"[{number}] {name}" for number, (name, _, _) in enumerate(models, 1)), f"{'':22}{heads}"]
    for label, groups, part in rows:
        cells = [
            _cells(results, group, trained, part) for (_, results, trained), group in zip(models, groups, strict=True)
        ]
        lines.append(f"{label:22}{''.join(cells)}")
    return "\n".join([*lines, f"percent; {_size(models[0][1])}"])


def differences(title: str, ours: Results, theirs: Results, found: Sequence[Difference]) -> str:
    """A model and a baseline in percent, and their difference with its 95% interval in percentage points."""
    heads = "".join(f"{metric.label:>11}{'base':>7}{'difference':>12}{'':16}" for metric in COMPARED)
    lines = [title, f"{'':10}{heads}".rstrip()]
    by_place = {(item.language, item.metric): item for item in found}
    for language in dict.fromkeys(item.language for item in found):
        shared = [name for name in ours if name in theirs] if language == "mean" else [language]
        our_means, their_means = (mean_scores(results, shared) for results in (ours, theirs))
        cells = [
            _difference(our_means[metric.log_name], their_means[metric.log_name], by_place[language, metric.name])
            for metric in COMPARED
        ]
        lines.append(f"  {language:8}{''.join(cells)}".rstrip())
    return "\n".join([*lines, f"[95% intervals: {RESAMPLES:,} paired resamples of the pictures with their captions]"])


def _difference(ours: float, theirs: float, item: Difference) -> str:
    interval = f"[{100 * item.low:+.1f}, {100 * item.high:+.1f}]"
    return f"{ours:11.1f}{theirs:7.1f}{100 * item.difference:+7.1f} {interval:20}"


def _cells(results: Results, names: Sequence[str], trained: Sequence[str], stratum: str | None) -> str:
    first, *others = SIDE_BY_SIDE
    widths = [max(9, len(metric.label) + 2) for metric in others]
    if not names:
        return " " * (12 + sum(widths))
    scores = mean_scores(results, names, stratum)
    mark = " " if names[0] in trained or names[0] == TEACHER else "°"
    values = "".join(f"{scores[metric.log_name]:{width}.1f}" for metric, width in zip(others, widths, strict=True))
    return f"{scores[first.log_name]:11.1f}{mark}{values}"


def _language(label: str, result: Retrieval) -> str:
    """A line of a language, with the sizes of its gallery and of its captions."""
    return f"{_line(label, result.scores())}{result.gallery:10,}{result.captions:10,}"


def _line(label: str, scores: dict[str, float]) -> str:
    return f"{label:26}" + "".join(f"{scores[metric.log_name]:{WIDTHS[metric]}.1f}" for metric in COLUMNS)
