"""Translations, by sacreBLEU: BLEU and chrF, with the signatures that make them comparable."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import TranslationStage
from mclip_kit.data.bitext import Bitext, Direction, find_directions, format_directions, open_bitext
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.evaluate.bitext import errors, held_out_sentences, mean_pooled
from mclip_kit.models.translator import Translator

TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char"}
"""How BLEU cuts a language into words; others as mteval-v13a. sacreBLEU's own for ja and ko need packages more."""


@dataclass(frozen=True)
class Score:
    """What translations into one language are worth; the signatures say how that was counted."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def score(hypotheses: Sequence[str], references: Sequence[str], language: str) -> Score:
    """BLEU and chrF of a corpus (Papineni et al. 2002; Popovic 2015; Post 2018, arXiv 1804.08771).

    Args:
        hypotheses, references: N translations, and one right answer each.
        language: that they are written in; it decides BLEU's tokenizer.
    """
    bleu, chrf = BLEU(tokenize=TOKENIZERS.get(language, "13a")), CHRF()
    of_bleu, of_chrf = (metric.corpus_score(list(hypotheses), [list(references)]).score for metric in (bleu, chrf))
    return Score(of_bleu, of_chrf, str(bleu.get_signature()), str(chrf.get_signature()))


@dataclass(frozen=True)
class Translated:
    """A direction's held-out sentences, what a model wrote, and its score."""

    sources: list[str]
    references: list[str]
    hypotheses: list[str]
    score: Score


def translated(
    translator: Translator, bitexts: Sequence[Bitext], split: str, direction: Direction, count: int | None, beams: int
) -> Translated:
    """Translate held-out sentences of a direction, and score them.

    Args:
        count: the first so many of the first corpus that has the direction; None: all.
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
    """Every direction's translations."""
    return {direction: translated(translator, bitexts, split, direction, count, beams) for direction in directions}


def held_out(data: Path, split: str, languages: Sequence[str] | str) -> tuple[list[Bitext], list[Direction]]:
    """The parallel sentences of a prepared folder, or of a fairseq-binarised one, and their directions.

    Args:
        languages: both sides' must be among them; or `all`.
    Raises:
        DataError: there are none.
    """
    bitexts = [open_bitext(data / "bitext" if (data / "bitext").is_dir() else data)]
    directions = find_directions(bitexts, split)
    chosen = [way for way in directions if languages == "all" or set(way) <= set(languages)]
    if not chosen:
        raise DataError(
            f"{data}: no {split} pair within {', '.join(languages)}; there are {format_directions(directions)}"
        )
    return bitexts, chosen


def summary(translator: Translator, results: dict[Direction, Translated]) -> dict[str, Any]:
    """Values for a log: means over directions, each direction's, each pair's retrieval errors both ways; signatures."""
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


def evaluator(recipe: Recipe) -> Any:
    """What a run calls in translation stages: (model, store, stage) -> values for the log; `score` is BLEU.

    Raises:
        RecipeError: there is no such metric; those that there are are named.
    """
    asked = recipe.evaluation
    assert asked
    bitexts = [open_bitext(folder) for folder in recipe.data.bitexts]

    def score_stage(model: Any, store: Any, stage: TranslationStage) -> dict[str, Any]:
        translator = model if isinstance(model, Translator) else Translator(model.encoder, model.decoder)
        directions = find_directions(bitexts, asked.split, stage.directions)
        results = evaluate(translator, bitexts, asked.split, directions, asked.sentences, asked.beams)
        values = summary(translator, results)
        name = asked.metric if asked.metric in values or {stage.kind for stage in recipe.stages} == {"translate"} else None
        if name is not None and name not in values:
            raise RecipeError(f"evaluation.metric: there is no {name}; there are {', '.join(values)}")
        return {"score": values[name or "bleu"], **values}

    return score_stage
