"""The part of docs/results.md on mCLIP's multilingual text encoder (MTE), and how it helps triangle distillation.

Multi30K: a small new encoder and decoder learn to translate between English and German, French and Czech; a sentence
contrast is added in the second stage. Embedded corpus: the same two stages on its names, then triangle distillation in
English alone on the trained encoder, and on the same encoder before training. results.py calls this module.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from tables import Scores, head, kept, over, row, spread

from mclip_kit.config.recipe import load
from mclip_kit.data.bitext import find_directions, open_bitext
from mclip_kit.data.captions import read_captions
from mclip_kit.data.corpora import declaration
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.evaluate import retrieval, translation
from mclip_kit.evaluate.retrieval import TEACHER
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.models.translator import Translator
from mclip_kit.tasks.base import Scores as Validated
from mclip_kit.train.run import Run

SENTENCES, BEAMS = 200, 5  # of each direction's test split
SMALL = ["encoder={layers: 2, width: 128, heads: 4, ffn: 512, dropout: 0}", "decoder={layers: 2, dropout: 0}"]
LEARNING = ["train=[encoder, decoder]", "warmup_steps=200", "clip_norm=1.0"]  # all weights are new, so all are trained
RATES = (1.5e-3, 7.5e-4)  # at 2e-3 the encoder of one seed of three collapses: the same state for every sentence
STAGES = {"untrained": "stage 0, untrained", "translation": "stage 1, translation", "contrast": "stage 2, contrast"}


def stages_of(steps: tuple[int, int], tokens: int, smoke: bool) -> list[str]:
    """Changes of recipes/mte.yaml to a small size; both stages train all of a new encoder, word table included."""
    changes = []
    for stage, (count, rate) in enumerate(zip(steps, RATES, strict=True)):
        changes += [f"stages.{stage}.steps={5 if smoke else count}", f"stages.{stage}.lr={rate}"]
        changes += [f"stages.{stage}.batch_tokens={tokens}"]
        changes += [f"stages.{stage}.{change}" for change in LEARNING]
    return changes


def multi30k(root: Path, source: Path | None) -> Path | None:
    """Multi30K, prepared once with a small vocabulary; None if its text is missing."""
    folder = root / "multi30k"
    if source is None:
        return None
    if not (folder / "manifest.json").is_file():
        corpus = declaration("multi30k", ["vocabulary.pieces=4000"])
        prepare(corpus, folder, None, Source(source, None, corpus.obtain), None)
    return folder


def translations(seed: int, root: Path, data: Path, smoke: bool) -> Scores:
    """BLEU and retrieval errors on the test split: untrained, and after each stage."""
    folder = root / f"seed-{seed}" / "mte"
    changes = [f"seed={seed}", f"data.bitext={data / 'bitext'}", *SMALL, *stages_of((1000, 400), 2000, smoke)]
    recipe = load("mte", [*changes, "evaluation={every_steps: 1000000}"])
    bitexts = [open_bitext(data / "bitext")]
    scores: Scores = {}

    def score(model: Translator, cache: FeatureCache, task: Any) -> Validated:
        """Called at the start and at the end of each stage."""
        place = task.stage.name if scores else "untrained"
        if place != "contrast" or "start" in scores:
            directions = find_directions(bitexts, "test")
            results = translation.evaluate(model, bitexts, "test", directions, 5 if smoke else SENTENCES, BEAMS)
            scores[place] = translation.log_values(model, results)
            copies = {way: translation.score(r.sources, r.references, way[1]).bleu for way, r in results.items()}
            scores["copied"] = {"bleu": mean(copies.values())} | {f"{'-'.join(w)}_bleu": b for w, b in copies.items()}
        else:
            scores["start"] = {}  # of the second stage: the same weights as at the end of the first
        return Validated(0.0, {"score": 0.0})

    def make() -> Scores:
        Run(recipe, folder, score).go()
        return scores

    return kept(folder, make)


def distilled(seed: int, root: Path, smoke: bool) -> Scores:
    """Recalls of triangle distillation in English alone: encoder -> language -> scores."""
    folder = root / f"seed-{seed}" / "mte_trikd"
    languages = load("quickstart").stages[-1].languages  # the ten of the parallel text
    teacher = root / f"seed-{seed}" / "quickstart" / "model" / "clip"
    learning = load("mte", [f"seed={seed}", *SMALL, *stages_of((500, 1000), 1500, smoke), "evaluation=null"])
    changes = [f"seed={seed}", f"teacher.model=local-dir:{teacher}", "evaluation=null"]
    for stage in (0, 1):
        changes += [f"stages.{stage}.languages=[en]", f"stages.{stage}.epochs={1 if smoke else 40}"]

    def make() -> Scores:
        run = Run(learning, folder / "mte")
        run.model.save(folder / "untrained")
        encoders = {"untrained": folder / "untrained", "contrast": run.go()}
        scores = {}
        for name, encoder in encoders.items():
            recipe = load("quickstart_trikd", [*changes, f"encoder=hf:{encoder / 'encoder'}"])
            model = load_model(Run(recipe, folder / f"trikd_{name}").go())
            results = retrieval.evaluate(model, read_captions(str(recipe.data.captions)), "test", languages)
            scores[name] = {language: result.scores() for language, result in results.items()}
        return scores

    return kept(folder, make)


def section(seeds: list[Scores]) -> list[str]:
    """Lines of docs/results.md.

    Args:
        seeds: scores of each seed: `distilled`, and `translations` if there are any.
    """
    lines = ["## mte: translation, then sentence contrast, and how they help triangle distillation", ""]
    if "translations" in seeds[0]:
        lines += _translation_tables([seed["translations"] for seed in seeds])
    return [*lines, *_distilled_table([seed["distilled"] for seed in seeds])]


def _translation_tables(seeds: list[Scores]) -> list[str]:
    ways = [name.removesuffix("_bleu") for name in seeds[0]["copied"] if name != "bleu"]
    rows = {"copying the source": "copied", **{label: name for name, label in STAGES.items()}}
    measures = ("bleu", "chrf", "retrieval_error")
    return [
        f"Multi30K's test_2016 ({SENTENCES} sentences a direction, beam {BEAMS}); a new encoder and decoder of two "
        "layers, width 128, 4,000 pieces, 1,000 and 400 steps of 2,000 tokens: minutes on one core. Retrieval error: "
        "how often a sentence's nearest neighbour (mean pool, cosine) is not its translation, both ways.",
        "",
        *head("mean of six directions", "BLEU", "chrF", "retrieval error %"),
        *(
            row(label, *(spread(over(seeds, name, part)) if part in seeds[0][name] else "" for part in measures))
            for label, name in rows.items()
        ),
        "",
        *head("BLEU", *ways),
        *(row(label, *(spread(over(seeds, name, f"{way}_bleu")) for way in ways)) for label, name in rows.items()),
        "",
        f"BLEU `{seeds[0]['contrast']['bleu_signatures']}`, chrF `{seeds[0]['contrast']['chrf_signatures']}`.",
        "",
    ]


def _distilled_table(seeds: list[Scores]) -> list[str]:
    languages = [name for name in seeds[0]["contrast"] if name not in (TEACHER, "en")]
    labels = {"untrained": "an untrained encoder", "contrast": "the encoder after both MTE stages"}
    lines = [
        "Embedded corpus: the encoder (two layers, width 128) learns to translate its names in ten languages, 500 and "
        "1,000 steps of 1,500 tokens; then a projector on the frozen encoder learns in **English only** "
        "(the two stages of quickstart_trikd, 40 epochs each). The untrained encoder is the same one before its first "
        "step: in other languages it finds only what shares pieces of words with English.",
        "",
        *head("on", "R@1, T2I, English", f"R@1, mean of {len(languages)} others", "R@10", "mean recall, all"),
    ]
    for name, label in labels.items():
        others = [
            spread([mean(seed[name][language][key] for language in languages) for seed in seeds])
            for key in ("t2i_r1", "t2i_r10")
        ]
        everyone = spread(
            [mean(seed[name][language]["mean_recall"] for language in ["en", *languages]) for seed in seeds]
        )
        lines.append(row(label, spread(over(seeds, name, "en", "t2i_r1")), *others, everyone))
    return [*lines, ""]
