"""Trunk calibration of a model that never saw one of its languages in training, on the embedded corpus.

    python benchmarks/calibrate_results.py [--seeds 1,2,3] [--smoke]

A seed trains the recipe quickstart without Korean in its second and third stage, then calibrate from that model, in all
ten languages. The rows are text to image, R@1 of the test split: before calibration, after it, and, as a bound, the
recipe quickstart with all ten languages, if `make results` has trained it. Pictures are compared bit for bit. Scores
are kept in runs/calibrate/seed-N and are not computed again; `--smoke` trains one epoch a stage of the second model.
"""

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from tables import Scores, asked, head, kept, over, row, spread

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.run import Run

GOAL = 0.9  # of what the languages that were trained have: R@1 of the starved one after calibration
EMBEDDED = Path("data/emoji")
STARVED = "ko"
COLUMNS = {"starved": "Korean", "english": "English", "others": "mean of the eight others", "ten": "mean of ten"}


def summary(found: dict[str, Any], languages: list[str]) -> Scores:
    """The figures of a row, from the retrieval of each language."""
    scores = {name: found[name].scores()["t2i_r1"] for name in languages}
    others = [scores[name] for name in languages if name not in (STARVED, "en")]
    return {"starved": scores[STARVED], "english": scores["en"], "others": mean(others), "ten": mean(scores.values())}


def trained(name: str, changes: list[str], folder: Path, features: Path) -> Scores:
    """Train a recipe; its scores."""
    recipe = load(name, [*changes, "evaluation=null", f"cache.folder={features}"])
    Run(recipe, folder).go()
    return score(folder, features)


def score(folder: Path, features: Path) -> Scores:
    """The figures of a run's model on both splits."""
    model, captions = load_model(folder / "model"), read_captions(EMBEDDED)
    cache = FeatureCache(features)  # a new one: it knows the weights of one model
    found = {split: evaluate(model, captions, split, cache=cache) for split in ("test", "valid")}
    return {split: summary(results, languages_of()) for split, results in found.items()}


def languages_of() -> list[str]:
    """The ten languages of the recipes."""
    evaluation = load("calibrate").evaluation
    assert evaluation
    return list(evaluation.languages)


def same_pictures(one: Path, other: Path) -> bool:
    """Whether two models embed the pictures of the test split to the same bits."""
    captions = read_captions(EMBEDDED)
    vectors = [FrozenTowers(load_model(folder / "model"), FeatureCache()) for folder in (one, other)]
    first, second = (towers.images(captions, captions.gallery("test")).take() for towers in vectors)
    return bool((first == second).all())


def one_seed(seed: int, root: Path, smoke: bool) -> dict[str, Scores]:
    """The rows of a seed."""
    folder, features = root / f"seed-{seed}", root / "features"
    nine = f"[{', '.join(name for name in languages_of() if name != STARVED)}]"
    first = [f"seed={seed}", *(f"stages.{stage}.languages={nine}" for stage in (1, 2))]
    second = [f"seed={seed}", f"init_from={folder / 'starved' / 'model'}"]
    if smoke:
        first += [f"stages.{stage}.epochs=1" for stage in range(3)]
        second += ["stages.0.epochs=1"]
    starved, after = folder / "starved", folder / "calibrated"

    def calibrated() -> Scores:
        scores = trained("calibrate", second, after, features)
        return {**scores, "same pictures": same_pictures(starved, after)}

    found = {"without Korean": kept(starved, partial(trained, "quickstart", first, starved, features))}
    found["calibrated"] = kept(after, calibrated)
    whole = Path("runs", "results", f"seed-{seed}", "quickstart")
    if (whole / "model" / "config.json").is_file():
        found["with Korean from the start"] = kept(folder / "whole", partial(score, whole, features))
    return found


def main() -> None:
    """Train what is missing; print the rows, and the starved language's share of what the others have."""
    numbers, root, smoke = asked(__doc__, "calibrate")
    seeds = [one_seed(seed, root, smoke) for seed in numbers]
    print("\n".join(head("T2I R@1, test", *COLUMNS.values())))
    for name in seeds[0]:
        known = [seed for seed in seeds if name in seed]
        print(row(name, *(spread(over(known, name, "test", key)) for key in COLUMNS)))
    same = [seed["calibrated"]["same pictures"] for seed in seeds]
    print(f"picture embeddings are the same bits: {all(same)}")
    shares = [seed["calibrated"]["test"]["starved"] / max(seed["calibrated"]["test"]["others"], 1e-9) for seed in seeds]
    print(f"calibrate_results ratio={mean(shares):.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
