"""Evaluations for people: tables for the terminal, and results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mclip_kit.data.bitext import Direction
from mclip_kit.evaluate.bootstrap import RESAMPLES, Difference
from mclip_kit.evaluate.ranks import KS
from mclip_kit.evaluate.retrieval import Retrieval
from mclip_kit.evaluate.translation import Translated
from mclip_kit.evaluate.zeroshot import Zeroshot

COLUMNS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "mean_recall")
HEADS = ("T2I@1", "@5", "@10", "I2T@1", "@5", "@10", "mean")
TEACHER, STUDENT, ENGLISH = "teacher", "student", "en"
WAYS = {"image": "t2i", "text": "i2t"}  # what is looked for, by which clip-benchmark names a way
COMPARED = {"image_retrieval_recall@1": "t2i_r1", "text_retrieval_recall@1": "i2t_r1", "mean_recall": "mean_recall"}

Results = dict[str, Retrieval]
"""Language, or `teacher`, -> its ranks."""
Rows = list[dict[str, Any]]
"""Entries of results.json."""


def retrieval_rows(results: Results, about: dict[str, Any], tower: str, trained: Sequence[str] | None) -> Rows:
    """A row a language for results.json, in clip-benchmark's names, recalls as fractions.

    There `image_retrieval` is text to image, and `text_retrieval` image to text.

    Args:
        about: `dataset`, `model`, `pretrained`, `split`.
        tower: which one encoded the text; the line of the teacher's own says so itself.
        trained: the student's trained languages; None for a tower of which that is not known.
    """
    rows = []
    for name, result in results.items():
        own = name == TEACHER
        strata = np.unique(result.strata_G)
        rows.append(
            about
            | {
                "task": "zeroshot_retrieval",
                "language": ENGLISH if own else name,
                "tower": TEACHER if own else tower,
                "n_images": result.gallery,
                "n_captions": result.captions,
                "trained": None if own or trained is None else name in trained,
                "metrics": _metrics(result),
                "strata": {str(part): _metrics(result, str(part)) for part in (strata if len(strata) > 1 else ())},
            }
        )
    return rows


def distinct(rows: Rows) -> Rows:
    """Without the teacher's English where it comes twice, by itself and as a baseline."""
    return list({(row["model"], row["tower"], row["language"]): row for row in rows}.values())


def _metrics(result: Retrieval, stratum: str | None = None) -> dict[str, float | None]:
    scores = result.scores(stratum)
    recalls = {f"{way}_retrieval_recall@{k}": scores[f"{short}_r{k}"] / 100 for way, short in WAYS.items() for k in KS}
    medians = {f"{way}_median_rank": scores[f"{short}_median_rank"] for way, short in WAYS.items()}
    return plain({**recalls, "mean_recall": scores["mean_recall"] / 100, **medians})


def zeroshot_rows(
    teacher: Zeroshot | None, students: Mapping[str, Zeroshot], about: dict[str, Any], trained: Sequence[str]
) -> Rows:
    """A row a language for results.json, as `retrieval_rows`."""
    named: list[tuple[str, str, bool | None, Zeroshot]] = [(ENGLISH, TEACHER, None, teacher)] if teacher else []
    named += [(language, STUDENT, language in trained, found) for language, found in students.items()]
    return [
        about
        | {
            "task": "zeroshot_classification",
            "language": language,
            "tower": tower,
            "n_images": len(found.ranks_N),
            "n_classes": found.classes,
            "trained": is_trained,
            "metrics": plain(found.scores()),
        }
        for language, tower, is_trained, found in named
    ]


def plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """The same for JSON, which has no NaN: null."""
    return {name: None if np.isnan(value) else value for name, value in numbers.items()}


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
    return "\n".join([*lines, f"percent; {_size(results)}"])


def _size(results: Results) -> str:
    """How many pictures and captions there are, and what chance gives."""
    some = next(iter(results.values()))
    pictures = some.gallery
    counts = sorted({result.captions for result in results.values()})
    captions = " to ".join(f"{count:,}" for count in (counts if len(counts) == 1 else (counts[0], counts[-1])))
    chance = f"chance T2I@1 is {100 / pictures:.2f}"
    return f"{pictures:,} pictures, {captions} captions a language, protocol {some.protocol}; {chance}"


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
    return "\n".join([*lines, f"percent; {_size(models[0][1])}"])


def differences(title: str, ours: Results, theirs: Results, found: Sequence[Difference]) -> str:
    """A model beside a baseline, and the difference with its 95% interval, in percent and percentage points."""
    heads = "".join(f"{head:>6}{'base':>7}{'difference':>12}{'':16}" for head in ("T2I@1", "I2T@1", "mean"))
    lines = [title, f"{'':10}{heads}".rstrip()]
    by_place = {(item.language, item.metric): item for item in found}
    for language in dict.fromkeys(item.language for item in found):
        shared = [name for name in ours if name in theirs] if language == "mean" else [language]
        sides = [mean_scores(results, shared) for results in (ours, theirs)]
        cells = [
            _difference(sides[0][column], sides[1][column], by_place[language, metric])
            for metric, column in COMPARED.items()
        ]
        lines.append(f"  {language:8}{''.join(cells)}".rstrip())
    return "\n".join([*lines, f"[95% intervals: {RESAMPLES:,} paired resamples of the pictures with their captions]"])


def _difference(ours: float, theirs: float, item: Difference) -> str:
    interval = f"[{100 * item.low:+.1f}, {100 * item.high:+.1f}]"
    return f"{ours:6.1f}{theirs:7.1f}{100 * item.difference:+7.1f} {interval:20}"


def zeroshot_table(
    title: str, teacher: Zeroshot | None, students: Mapping[str, Zeroshot], trained: Sequence[str]
) -> str:
    """Accuracies in percent: the teacher's English, and every language."""
    heads = "".join(f"{head:>11}" for head in ("acc1", "acc5", "per class", "classes", "pictures"))
    lines = [title, f"{'':26}{heads}"]
    named = [("teacher's own text, en", teacher)] if teacher else []
    named += [(f"  {name}{'' if name in trained else '  never trained'}", own) for name, own in students.items()]
    for label, found in named:
        scores = "".join(f"{'' if np.isnan(value) else f'{100 * value:.1f}':>11}" for value in found.scores().values())
        lines.append(f"{label:26}{scores}{found.classes:11,}{len(found.ranks_N):11,}")
    shared = [f"{name} {own.shared}" for name, own in students.items() if own.shared]
    if shared:
        lines.append(f"classes that have another's name, and count as missed: {', '.join(shared)}")
    chance = 100 / max(own.classes for own in students.values())
    return "\n".join([*lines, f"percent; chance acc1 is {chance:.2f}"])


def bitext_rows(found: Mapping[Direction, tuple[int, float]], about: dict[str, Any]) -> Rows:
    """A row a direction for results.json."""
    return [
        about
        | {
            "task": "bitext_retrieval",
            "language": "-".join(direction),
            "tower": STUDENT,
            "n_captions": count,
            "metrics": {"retrieval_error": error / 100, "retrieval_accuracy": 1 - error / 100},
        }
        for direction, (count, error) in found.items()
    ]


def bitext_table(title: str, found: Mapping[Direction, tuple[int, float]]) -> str:
    """Error rates in percent, and their mean."""
    lines = [title, f"{'':26}{'error':>8}{'sentences':>11}"]
    lines += [f"  {'-'.join(way):24}{error:8.1f}{count:11,}" for way, (count, error) in found.items()]
    mean = np.mean([error for _, error in found.values()])
    return "\n".join([*lines, f"{f'mean of {len(found)}':26}{mean:8.1f}", "percent of wrong nearest neighbours"])


def translation_rows(found: Mapping[Direction, Translated], about: dict[str, Any]) -> Rows:
    """A row a direction for results.json, with sacreBLEU's signatures."""
    return [
        about
        | {
            "task": "translation",
            "language": "-".join(direction),
            "tower": STUDENT,
            "n_captions": len(result.sources),
            "metrics": {"bleu": result.score.bleu, "chrf": result.score.chrf},
            "signatures": {"bleu": result.score.bleu_signature, "chrf": result.score.chrf_signature},
        }
        for direction, result in found.items()
    ]


def translation_table(title: str, found: Mapping[Direction, Translated]) -> str:
    """BLEU and chrF of every direction, their means, and how they were counted."""
    lines = [title, f"{'':26}{'BLEU':>8}{'chrF':>8}{'sentences':>11}"]
    lines += [
        f"  {'-'.join(way):24}{result.score.bleu:8.1f}{result.score.chrf:8.1f}{len(result.sources):11,}"
        for way, result in found.items()
    ]
    scores = [result.score for result in found.values()]
    means = f"{np.mean([s.bleu for s in scores]):8.1f}{np.mean([s.chrf for s in scores]):8.1f}"
    signatures = dict.fromkeys(signature for s in scores for signature in (s.bleu_signature, s.chrf_signature))
    return "\n".join([*lines, f"{f'mean of {len(found)}':26}{means}", *signatures])


def _cells(results: Results, names: Sequence[str], trained: Sequence[str], stratum: str | None) -> str:
    if not names:
        return " " * 28
    scores = mean_scores(results, names, stratum)
    mark = " " if names[0] in trained or names[0] == TEACHER else "°"
    return f"{scores['t2i_r1']:11.1f}{mark}{scores['t2i_r10']:8.1f}{scores['mean_recall']:8.1f}"


def _line(label: str, scores: dict[str, float]) -> str:
    return f"{label:26}" + "".join(f"{scores[column]:8.1f}" for column in COLUMNS)
