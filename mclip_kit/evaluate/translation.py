"""Translations: BLEU and chrF by sacreBLEU, with the signatures that make scores comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mclip_kit.config.recipe import Evaluation, Recipe
from mclip_kit.data.bitext import Bitext, Direction, find_directions, format_directions, open_bitext
from mclip_kit.data.languages import TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.evaluate import bitext
from mclip_kit.evaluate.base import Findings, Metric, Opened, Request, ResultRows, Validation
from mclip_kit.evaluate.bitext import errors, held_out_sentences, mean_pooled
from mclip_kit.evaluate.bleu import Score, score
from mclip_kit.evaluate.checks import open_data
from mclip_kit.evaluate.models import computed_on
from mclip_kit.evaluate.retrieval import STUDENT
from mclip_kit.files import write_text
from mclip_kit.models.device import as_precision, auto_device, autocast
from mclip_kit.models.translator import Translator, load_translator

METRICS = (
    Metric("bleu", "BLEU", "BLEU", fraction=False, drawn=True),
    Metric("chrf", "chrF", "chrF", fraction=False),
)


@dataclass(frozen=True)
class Translated:
    """Held-out sentences of a direction, a model's translations, and their score."""

    sources: list[str]
    references: list[str]
    hypotheses: list[str]
    score: Score


def translated(
    translator: Translator, bitexts: Sequence[Bitext], split: str, direction: Direction, count: int | None, beams: int
) -> Translated:
    """Translate held-out sentences of a direction, and score them.

    Args:
        count: how many sentences, the first ones, of the first corpus that has the direction; None: all.
        beams: width of the beam search.
    """
    texts, references = held_out_sentences(bitexts, split, direction, count)
    hypotheses = translator.translate(texts, *direction, beams)
    return Translated(texts, references, hypotheses, score(hypotheses, references, direction[1]))


def evaluate(
    translator: Translator,
    bitexts: Sequence[Bitext],
    split: str,
    directions: Sequence[Direction],
    count: int | None = None,
    beams: int = 5,
) -> dict[Direction, Translated]:
    """Translations of every direction; arguments as those of `translated`."""
    return {direction: translated(translator, bitexts, split, direction, count, beams) for direction in directions}


def log_values(translator: Translator, results: Mapping[Direction, Translated]) -> dict[str, Any]:
    """Values for a log: scores of each direction and their means, retrieval errors both ways, signatures.

    The retrieval errors are those of the encoder's mean-pooled token states, see `bitext.errors`.
    """
    scores = {"-".join(direction): result.score for direction, result in results.items()}
    embed = mean_pooled(translator.encoder)
    wrong: dict[str, float] = {}
    for (source, target), result in results.items():
        if f"{source}-{target}_retrieval_error" not in wrong:
            forth, back = errors(embed, result.sources, result.references)
            wrong |= {f"{source}-{target}_retrieval_error": forth, f"{target}-{source}_retrieval_error": back}
    mean_error = sum(wrong.values()) / len(wrong)
    return {
        "bleu": sum(s.bleu for s in scores.values()) / len(scores),
        "chrf": sum(s.chrf for s in scores.values()) / len(scores),
        "retrieval_error": mean_error,
        "retrieval_accuracy": 100 - mean_error,
        **{f"{name}_bleu": s.bleu for name, s in scores.items()},
        **{f"{name}_chrf": s.chrf for name, s in scores.items()},
        **wrong,
        "bleu_signatures": " ".join(sorted({s.bleu_signature for s in scores.values()})),
        "chrf_signatures": " ".join(sorted({s.chrf_signature for s in scores.values()})),
    }


def notes(results: Mapping[Direction, Translated]) -> list[str]:
    """A line for each language whose BLEU counts characters because the packages of its tokenizer are missing."""
    wanted = {target: result.score.wanted for (_, target), result in results.items() if result.score.wanted}
    return [
        f"BLEU of {target} counts characters; to count words: pip install 'sacrebleu[{extra}]'"
        for target, extra in wanted.items()
    ]


def _open(recipe: Recipe, stages: Sequence[Any]) -> Opened:
    wanted = recipe.evaluation
    assert wanted
    bitexts = [open_bitext(folder) for folder in recipe.data.bitexts]
    directions = {stage.name: scored_directions(wanted, bitexts, stage) for stage in stages}
    told: set[str] = set()

    def score_translations(model: Any, cache: Any, task: Any) -> dict[str, Any]:
        translator = model if isinstance(model, Translator) else Translator(model.encoder, model.decoder)
        chosen = directions[task.stage.name]
        results = evaluate(translator, bitexts, wanted.split, chosen, wanted.sentences, wanted.beams)
        for line in notes(results):
            if line not in told:
                cache.log(line)
                told.add(line)
        return log_values(translator, results)

    def names(stage: Any) -> dict[str, str]:
        own = [f"{'-'.join(way)}_{metric.name}" for way in directions[stage.name] for metric in METRICS]
        return {name: name for name in (*(metric.name for metric in METRICS), "retrieval_accuracy", *own)}

    return Opened(score_translations, names, f"{wanted.split} of {', '.join(map(str, recipe.data.bitexts))}")


def scored_directions(wanted: Evaluation, bitexts: Sequence[Bitext], stage: Any) -> list[Direction]:
    """The directions of a stage that are scored: those between `evaluation.languages`, and between these and English.

    Raises:
        RecipeError: the split has none of them.
    """
    try:
        every = find_directions(bitexts, wanted.split, stage.directions)
    except DataError as error:
        raise RecipeError(f"evaluation.split: stage {stage.name}: {error}") from None
    if wanted.languages == "all":
        return every
    inside = {*map(normalize_language, wanted.languages), TEACHER_LANGUAGE}
    chosen = [way for way in every if {normalize_language(code) for code in way} <= inside]
    if not chosen:
        raise RecipeError(
            f"evaluation.languages: stage {stage.name} has no direction between {', '.join(wanted.languages)} and "
            f"{TEACHER_LANGUAGE}; there are {format_directions(every)}"
        )
    return chosen


VALIDATION = Validation(_open, lambda task: "bleu", (*METRICS, *bitext.METRICS), ("bleu", "chrf", "retrieval_error"))


def run(request: Request) -> Findings:
    """Score every model: a table of BLEU and chrF; of a single model also files of translations and references."""
    bitexts, directions = request.opened or open_data(request)
    device = auto_device()
    precision = as_precision(request.precision, device)
    rows: ResultRows = []
    files: list[Path] = []
    for name in request.models:
        translator = load_translator(name).to(device)
        with autocast(device, precision):
            found = evaluate(translator, bitexts, request.split, directions, request.sentences, request.beams)
        rows += _rows(found, request.about(name, translator.made_from))
        request.show(_table(request.title(name), found))
        if len(request.models) == 1:
            files = _write(found, request.out, request.split)
    return Findings(rows, files=files, device=computed_on(request))


def _write(found: Mapping[Direction, Translated], out: Path, split: str) -> list[Path]:
    """Write each direction's translations and references, in the same order."""
    files = []
    for (source, target), result in found.items():
        for kind, lines in (("hyp", result.hypotheses), ("ref", result.references)):
            files.append(out / f"{split}.{source}-{target}.{target}.{kind}")
            write_text(files[-1], "".join(f"{line}\n" for line in lines))
    return files


def _rows(found: Mapping[Direction, Translated], about: dict[str, Any]) -> ResultRows:
    """A row of results.json for each direction, with sacreBLEU's signatures."""
    return [
        about
        | {
            "language": "-".join(direction),
            "tower": STUDENT,
            "n_captions": len(result.sources),
            "metrics": {"bleu": result.score.bleu, "chrf": result.score.chrf},
            "signatures": {"bleu": result.score.bleu_signature, "chrf": result.score.chrf_signature},
        }
        for direction, result in found.items()
    ]


def _table(title: str, found: Mapping[Direction, Translated]) -> str:
    """BLEU and chrF of every direction, their means, and sacreBLEU's signatures."""
    lines = [title, f"{'':26}" + "".join(f"{metric.label:>8}" for metric in METRICS) + f"{'sentences':>11}"]
    lines += [
        f"  {'-'.join(way):24}{result.score.bleu:8.1f}{result.score.chrf:8.1f}{len(result.sources):11,}"
        for way, result in found.items()
    ]
    scores = [result.score for result in found.values()]
    means = f"{np.mean([s.bleu for s in scores]):8.1f}{np.mean([s.chrf for s in scores]):8.1f}"
    signatures = dict.fromkeys(signature for s in scores for signature in (s.bleu_signature, s.chrf_signature))
    return "\n".join([*lines, f"{f'mean of {len(found)}':26}{means}", *signatures, *notes(found)])
