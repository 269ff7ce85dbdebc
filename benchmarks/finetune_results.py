"""Retrieval fine-tuning on Multi30K's real captions in four languages, with stand-ins for its pictures.

    python benchmarks/finetune_results.py [--seeds 1,2,3] [--multi30k DIR]

Tunes the projector of runs/results/seed-N/quickstart_trikd/model, which `make results` trains, by
recipes/multi30k_finetune.yaml. It scores the start, the end and the weights half way between them (WiSE-FT), on
captions and pictures that no stage has seen and on the embedded corpus, on which the start was trained. The scores of
each seed are kept in runs/results/seed-N/multi30k_finetune and are not computed again. `make results` puts them into
docs/results.md; it computes them if Multi30K exists (MULTI30K=DIR, else ../shared/data/multi30k).
"""

import argparse
from pathlib import Path
from statistics import mean

import standins
from tables import Scores, at_hand, head, kept, row, spread

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.evaluate.retrieval import TEACHER, evaluate
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.run import Run

NAME = "multi30k_finetune"
LANGUAGES = ["en", "de", "fr", "cs"]
TRAIN, EPOCHS = 8000, 12  # pictures, each with a caption in each language; passes
EMBEDDED = ["en", "fr", "zh"]  # the languages that the start was trained on
PLACES = {"start": "step 0", "tuned": "tuned", "wise_ft": "wise_ft, half way"}


def one_seed(seed: int, folder: Path, multi30k: Path | None, smoke: bool = False) -> Scores | None:
    """The scores of a seed, computed once; None if there are none and Multi30K is missing.

    Args:
        folder: of the seed; it has quickstart_trikd/model.
        smoke: few pictures, one epoch.
    """
    if multi30k is None and not (folder / NAME / "scores.json").is_file():
        return None
    return kept(folder / NAME, lambda: tuned(seed, folder, multi30k, 200 if smoke else TRAIN, 1 if smoke else EPOCHS))


def tuned(seed: int, folder: Path, multi30k: Path | None, train: int, epochs: int) -> Scores:
    """Tune with a seed; scores of each model on each corpus, and a sentence on the data."""
    assert multi30k
    images, data = Path("data/standins_pictures"), Path(f"data/standins_{train}")
    found = standins.find(multi30k)
    about = standins.prepare(found, images, multi30k, data, train)
    start, features = folder / "quickstart_trikd" / "model", folder.parent / "features"
    changes = [
        f"seed={seed}",
        f"init_from={start}",
        f"data.captions={data}",
        f"cache.folder={features}",  # the encoder is the same for every seed
        "stages.0.train=[projector]",
        "stages.0.split=train",
        f"stages.0.epochs={epochs}",
    ]
    recipe = load(NAME, changes)
    captions = read_captions(data)
    Run(recipe, folder / NAME, evaluator(recipe)).go()
    folders = {"start": start, "tuned": folder / NAME / "model", "wise_ft": folder / NAME / "model-wise_ft"}
    emoji = read_captions("data/emoji")
    return {"about": about, **{place: scored(model, captions, emoji, features) for place, model in folders.items()}}


def scored(folder: Path, captions: Captions, emoji: Captions, features: Path) -> Scores:
    """Test scores of a model folder, by corpus and language."""
    model, cache = load_model(folder), FeatureCache(features)
    corpora = {"standins": (captions, LANGUAGES), "embedded": (emoji, EMBEDDED)}
    return {
        name: {
            language: result.scores()
            for language, result in evaluate(model, corpus, "test", languages, cache=cache).items()
        }
        for name, (corpus, languages) in corpora.items()
    }


def section(seeds: list[Scores]) -> list[str]:
    """Lines of docs/results.md."""
    lines = [
        "## multi30k_finetune: quickstart_trikd's projector, tuned on Multi30K with stand-in pictures",
        "",
        "**The pictures are stand-ins**: Flickr30k's may not be redistributed, so each is a collage of the emoji that "
        "its English captions name (benchmarks/standins.py). The captions are those of Multi30K, task 1, in four "
        f"languages; German and Czech are new to the projector. Pictures: {seeds[0]['about']}. Pictures that look the "
        f"same count as the same answer. At most {EPOCHS} epochs; only the projector is trained; the weights with the "
        "best mean recall on valid are kept. The figures do not measure fine-tuning on photographs; they show that it "
        "works.",
        "",
        "Mean recall (R@1, R@5, R@10, both ways) on the test split, and on that of the embedded corpus, which the "
        "start was trained on: it shows what tuning forgets (its emoji may be part of training collages). `wise_ft`: "
        "the weights half way between start and tuned (arXiv 2109.01903).",
        "",
        *head("", *LANGUAGES, f"mean of {len(LANGUAGES)}", f"embedded corpus, mean of {', '.join(EMBEDDED)}"),
    ]
    for place, label in PLACES.items():
        own = [[seed[place]["standins"][name]["mean_recall"] for seed in seeds] for name in LANGUAGES]
        old = [mean(seed[place]["embedded"][name]["mean_recall"] for name in EMBEDDED) for seed in seeds]
        means = [mean(values) for values in zip(*own, strict=True)]
        lines.append(row(label, *map(spread, [*own, means, old])))
    teacher = [seed["start"]["standins"][TEACHER]["mean_recall"] for seed in seeds]
    return [*lines, "", f"The teacher's own English text has a mean recall of {spread(teacher)} among these pictures."]


def main() -> None:
    """Tune what is missing; print the section, and the smallest gain of a language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--multi30k", type=Path, default=at_hand())
    asked = parser.parse_args()
    numbers = [int(seed) for seed in asked.seeds.split(",")]
    known = [one_seed(seed, Path("runs", "results", f"seed-{seed}"), asked.multi30k) for seed in numbers]
    seeds = [scores for scores in known if scores]
    if len(seeds) < len(known):
        parser.error("Multi30K is missing: give --multi30k DIR, or set MULTI30K=DIR")
    print("\n".join(section(seeds)))
    gains = [
        seed["tuned"]["standins"][name]["mean_recall"] - seed["start"]["standins"][name]["mean_recall"]
        for seed in seeds
        for name in LANGUAGES
    ]
    print(f"smallest gain of a language and seed: {min(gains):.1f} points of mean recall")


if __name__ == "__main__":
    main()
