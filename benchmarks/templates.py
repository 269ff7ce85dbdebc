"""Does it help to give a frozen teacher its texts in templates (prompt ensembling)? `quickstart_trikd` both ways.

    python benchmarks/templates.py [--teacher DIR] [--encoder DIR] [--data DIR] [--out DIR] [--seeds 1,2,3]

Needs the towers that `make demo` leaves. Prints text-to-image R@1 on the validation split, which decides, and on test:
English, the mean of the trained languages, the mean of the others; mean and standard deviation over seeds. The teacher
is the same for all seeds.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.retrieval import TEACHER, evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.train.run import Run

TEMPLATES = {
    "as they are": [],
    "the three of its training": ["{}", "an emoji of {}", "{} emoji"],
    "seven": ["{}", "an emoji of {}", "{} emoji", "a {}", "a picture of {}", "the symbol {}", "an icon of {}"],
}
Row = dict[str, tuple[float, float, float]]
"""Split -> R@1 of English, of the trained languages, of the others."""


def one(given: argparse.Namespace, seed: int, name: str) -> tuple[Row, float]:
    """Scores of a run, and its seconds with features at hand."""
    data, run = Path(given.data), Path(given.out) / f"{name.replace(' ', '-')}-{seed}"
    changes = [f"seed={seed}", "evaluation=null", f"encoder=hf:{given.encoder}", f"data.captions={data}"]
    changes += [f"teacher.model=local-dir:{given.teacher}", f"data.bitext={data / 'bitext'}"]
    listed = "[" + ", ".join(f'"{template}"' for template in TEMPLATES[name]) + "]"
    changes += [f"stages.{stage}.templates={listed}" for stage in range(2)]
    recipe = load("quickstart_trikd", changes)
    made = Run(recipe, run)
    start = perf_counter()
    made.go()
    seconds, captions, rows = perf_counter() - start, read_captions(data), Row()
    cache = FeatureCache(Path(given.out) / "features", "fp32")
    for split in ("valid", "test"):
        found = evaluate(made.model, captions, split, "all", cache=cache)
        r1 = {language: found[language].scores()["t2i_r1"] for language in found if language != TEACHER}
        trained = [score for language, score in r1.items() if language in made.model.trained_languages]
        others = [score for language, score in r1.items() if language not in made.model.trained_languages]
        rows[split] = r1["en"], mean(trained), mean(others)
    return rows, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="runs/quickstart/model/clip")
    parser.add_argument("--encoder", default="encoders/e5-small")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--out", default="runs/templates")
    parser.add_argument("--seeds", default="1,2,3")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    print("| templates | split | English | trained mean | others' mean | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in TEMPLATES:
        found = [one(given, seed, name) for seed in seeds]
        for split in ("valid", "test"):
            columns = zip(*(rows[split] for rows, _ in found), strict=True)
            cells = [f"{mean(c):.1f} ± {stdev(c):.1f}" if len(c) > 1 else f"{c[0]:.1f}" for c in columns]
            took = f"{mean(seconds for _, seconds in found):.0f}"
            print(f"| {name} | {split} | " + " | ".join(cells) + f" | {took} |", flush=True)


if __name__ == "__main__":
    main()
