"""The part of docs/results.md on mCLIP's multilingual text encoder (MTE), and how it helps triangle distillation.

Multi30K: a small new encoder and decoder learn to translate between English and German, French and Czech; a sentence
contrast is added in the second stage. Embedded corpus: the same two stages on its names, then triangle distillation in
English alone on the trained encoder, and on the same encoder before training. results.py calls this module.

    python benchmarks/mte_results.py [--seeds 1,2,3] [--encoders runs/results/seed-{seed}/mte_trikd] [--smoke]

prints what the neutral encoder costs in English, and why (docs/methods.md): projectors on its states and on those of
the untrained one, by the noise that they are trained with, on states as they are and whitened. The noise is chosen on
the validation split: the mean R@1 of the ten languages. `--encoders` has the folders that `make results` left; scores
are kept in runs/neutrality. The last line has English R@1 on the neutral encoder, divided by that on the untrained one.
"""

import argparse
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import losses
import torch
import torch.nn.functional as F
from losses import Ground, Split, Student
from tables import Scores, head, kept, over, row, spread
from torch import Tensor

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
NEUTRAL = "contrast"
ENCODERS = {"untrained": "untrained", "translation": "translation", NEUTRAL: "mte/model"}
"""Encoders of the embedded corpus, and their folders."""
NOISES, GOAL = (0.8, 0.4, 0.2, 0.1), 1.0
EDGES: tuple[losses.Edges, losses.Edges] = (
    {losses.TS: losses.MSE},
    {losses.IS: {"loss": "contrastive"}, losses.TS: losses.TRIKD},
)
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
    steps = stages_of((500, 1000), 1500, smoke)
    learning = load("mte", [f"seed={seed}", *SMALL, *steps, "evaluation={every_steps: 1000000}"])
    changes = [f"seed={seed}", f"teacher.model=local-dir:{teacher}", "evaluation=null"]
    for stage in (0, 1):
        changes += [f"stages.{stage}.languages=[en]", f"stages.{stage}.epochs={1 if smoke else 40}"]

    def keep(model: Translator, cache: FeatureCache, task: Any) -> Validated:
        """Called at the start and at the end of each stage."""
        start = "untrained" if task.stage.name == "translation" else "translation"
        if not (folder / start).is_dir():
            model.save(folder / start)
        return Validated(0.0, {"score": 0.0})

    def make() -> Scores:
        Run(learning, folder / "mte", keep).go()
        scores = {}
        for (name, place), noise in product(ENCODERS.items(), NOISES[::2]):
            if name == "translation":
                continue  # of main alone
            own = [*changes, f"encoder=hf:{folder / place / 'encoder'}", f"projector.noise={noise}"]
            model = load_model(Run(load("quickstart_trikd", own), folder / f"trikd_{name}_{noise}").go())
            captions = read_captions(str(load("quickstart_trikd").data.captions))
            results = retrieval.evaluate(model, captions, "test", languages)
            scores[f"{name}, {noise}"] = {language: result.scores() for language, result in results.items()}
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
    names = [name for name in seeds[0] if ", " in name]
    languages = [name for name in seeds[0][names[0]] if name not in (TEACHER, "en")]
    labels = {"untrained": "an untrained encoder", "contrast": "the encoder after both MTE stages"}
    lines = [
        "Embedded corpus: the encoder (two layers, width 128) learns to translate its names in ten languages, 500 and "
        "1,000 steps of 1,500 tokens; then a projector on the frozen encoder learns in **English only** "
        "(the two stages of quickstart_trikd, 40 epochs each), with that recipe's noise and with less "
        "(docs/methods.md says why). The untrained encoder is the same one before its first "
        "step: in other languages it finds only what shares pieces of words with English.",
        "",
        *head("on", "noise", "R@1, T2I, English", f"R@1, mean of {len(languages)} others", "R@10", "mean recall, all"),
    ]
    for name in names:
        others = [
            spread([mean(seed[name][language][key] for language in languages) for seed in seeds])
            for key in ("t2i_r1", "t2i_r10")
        ]
        everyone = spread(
            [mean(seed[name][language]["mean_recall"] for language in ["en", *languages]) for seed in seeds]
        )
        encoder, noise = name.split(", ")
        lines.append(row(labels[encoder], noise, spread(over(seeds, name, "en", "t2i_r1")), *others, everyone))
    return [*lines, ""]


def effective_dimension(states_NH: Tensor) -> float:
    """Of standardised states: the squared sum of the eigenvalues of their covariance over the sum of their squares."""
    standard_NH = (states_NH - states_NH.mean(0)) / states_NH.std(0)
    values_H = torch.linalg.eigvalsh(standard_NH.T @ standard_NH / len(standard_NH))
    return float(values_H.sum().square() / values_H.square().sum())


def whitening(states_NH: Tensor) -> Callable[[Tensor], Tensor]:
    """A map after which the states' covariance is about the identity (ZCA, with a hundredth of the mean variance)."""
    centre_H = states_NH.mean(0)
    values_H, vectors_HH = torch.linalg.eigh(torch.cov(states_NH.T).double())
    scales_H = (values_H.clamp(min=0) + 0.01 * values_H.mean()).rsqrt()
    map_HH = ((vectors_HH * scales_H) @ vectors_HH.T).float()
    return lambda own_BH: (own_BH - centre_H) @ map_HH


def mapped(ground: Ground, change: Callable[[Tensor], Tensor]) -> Ground:
    """The same ground with changed states."""
    new = copy(ground)
    new.stages = [copy(rows) for rows in ground.stages]
    for rows in new.stages:
        assert rows.pooled_BH is not None
        rows.pooled_BH = change(rows.pooled_BH)

    def split(own: Split) -> Split:
        texts = {name: (change(states_QH), places_Q) for name, (states_QH, places_Q) in own.texts.items()}
        return Split(own.image_GD, own.groups_G, own.strata_G, texts)

    new.splits = {name: split(own) for name, own in ground.splits.items()}
    return new


def projected(ground: Ground, noise: float, seed: int, languages: list[str]) -> Scores:
    """Recalls of a projector that learns with this noise, with the losses and rates of quickstart_trikd."""
    torch.manual_seed(seed)
    student = Student(ground)
    student.projector.head[0].std = noise  # type: ignore[index]
    for stage, (edges, lr) in enumerate(zip(EDGES, (1e-3, 5e-4), strict=True)):
        losses.train(student, ground.stages[stage], edges, lr, ground.epochs[stage], seed)
    return {split: recalls(student, ground.splits[split], languages) for split in ("valid", "test")}


@torch.no_grad()
def recalls(student: Student, split: Split, languages: list[str]) -> Scores:
    """English, mean of others and of all, text to image, in percent."""
    student.eval()
    image_GD = F.normalize(torch.from_numpy(split.image_GD), dim=-1).numpy()
    found = {}
    for name in languages:
        states_QH, places_Q = split.texts[name]
        text_QD = F.normalize(student.projector.head(states_QH), dim=-1).numpy()
        found[name] = losses.score(image_GD, text_QD, split.groups_G, places_Q, split.strata_G).scores()
    others = [found[name] for name in languages if name != "en"]
    means = {key: mean(scores[key] for scores in others) for key in ("t2i_r1", "t2i_r10")}
    return {
        "English": found["en"]["t2i_r1"],
        "others": means["t2i_r1"],
        "others10": means["t2i_r10"],
        "all": mean(scores["t2i_r1"] for scores in found.values()),
    }


def neutrality(
    grounds: dict[str, Ground], seed: int, noises: tuple[float, ...], languages: list[str], folder: Path | None
) -> Scores:
    """Of each row the states' effective dimension, and noise -> split -> recalls; kept in the folder, if given."""
    rows: Scores = {}
    for name, ground in grounds.items():
        states_NH = ground.stages[0].pooled_BH
        assert states_NH is not None
        for way, own in {name: ground, f"{name}, whitened": mapped(ground, whitening(states_NH))}.items():
            make = partial(by_noise, own, seed, noises, languages)
            rows[way] = make() if folder is None else kept(folder / way.replace(", ", "-").replace(" ", "-"), make)
            dimension, best = rows[way]["dimension"], chosen(rows[way])
            print(
                f"seed {seed}  {way}: dimension {dimension:.1f}, noise {best}, {rows[way]['noise'][best]}", flush=True
            )
    return rows


def by_noise(ground: Ground, seed: int, noises: tuple[float, ...], languages: list[str]) -> Scores:
    """The effective dimension of the states of stage 1, and recalls by noise."""
    states_NH = ground.stages[0].pooled_BH
    assert states_NH is not None
    found = {str(noise): projected(ground, noise, seed, languages) for noise in noises}
    return {"dimension": effective_dimension(states_NH), "noise": found}


def chosen(found: Scores) -> str:
    """The noise that is best on the validation split."""
    return max(found["noise"], key=lambda noise: found["noise"][noise]["valid"]["all"])


def grounds_of(seed: int, asked: argparse.Namespace, languages: list[str]) -> dict[str, Ground]:
    """The ground of each encoder, with English rows; and that of the neutral encoder with rows of all languages."""
    folder = Path(asked.encoders.format(seed=seed))
    places = {name: folder / own for name, own in ENCODERS.items() if (folder / own).is_dir()}
    wanted = [(name, place, ["en"]) for name, place in places.items()]
    wanted.append((f"{NEUTRAL}, trained in all", places[NEUTRAL], languages))
    found = {}
    for name, place, own in wanted:
        given = argparse.Namespace(**{**vars(asked), "encoder": place / "encoder", "epochs": [40, 40]})
        if len(own) > 1:
            given.epochs = [4, 4]  # ten times the rows: as many steps
        more = [f"stages.{stage}.languages=[{', '.join(own)}]" for stage in (0, 1)]
        found[name] = losses.read_ground(seed, given, [*more, "evaluation=null"])
    return found


def page(seeds: list[Scores]) -> Iterator[str]:
    """The tables of docs/methods.md."""
    columns = {"English": "English", "others": "9 others", "others10": "9 others, R@10"}
    yield from head("states of", "dimension", "noise", "English, valid", "9 others, valid", *columns.values())
    for name in seeds[0]:
        dimension = spread([seed[name]["dimension"] for seed in seeds])
        best = chosen(seeds[0][name])  # of the first seed
        for noise in seeds[0][name]["noise"]:
            valid = [spread(over(seeds, name, "noise", noise, "valid", key)) for key in ("English", "others")]
            test = [spread(over(seeds, name, "noise", noise, "test", key)) for key in columns]
            yield row(name, dimension, f"**{noise}**" if noise == best else noise, *valid, *test)


def main() -> None:
    """Train the projectors, print the table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--encoders", default="runs/results/seed-{seed}/mte_trikd")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--teacher", default="runs/results/seed-{seed}/quickstart/model/clip")
    parser.add_argument("--cache", default="runs/features")
    parser.add_argument("--out", default="runs/neutrality")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    numbers = [1] if asked.smoke else [int(seed) for seed in asked.seeds.split(",")]
    noises = NOISES[:1] if asked.smoke else NOISES

    def scored(seed: int) -> Scores:
        if asked.smoke:
            grounds, languages = {name: losses.made_up(seed) for name in ("untrained", NEUTRAL)}, ["en", "pt"]
            return neutrality(grounds, seed, noises, languages, None)
        languages = [str(language) for language in load("quickstart").stages[-1].languages]
        folder = Path(asked.out) / f"seed-{seed}"
        return neutrality(grounds_of(seed, asked, languages), seed, noises, languages, folder)

    seeds = [scored(seed) for seed in numbers]
    print("\n" + "\n".join(page(seeds)))
    ways = [
        mean(over(seeds, name, "noise", chosen(seeds[0][name]), "test", "English")) for name in (NEUTRAL, "untrained")
    ]
    print(f"mte_results ratio={ways[0] / max(ways[1], 1e-9):.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
