"""Does it help to give a frozen teacher its texts in templates (prompt ensembling)? `quickstart_trikd` both ways.

    python benchmarks/templates.py [--teacher DIR] [--encoder DIR] [--data DIR] [--out DIR] [--seeds 1,2,3] [--smoke]

Needs the towers that `make demo` leaves. Prints text-to-image R@1 on the validation split, which decides, and on test:
English, the mean of the trained languages, the mean of the others; mean and standard deviation over seeds. The teacher
is the same for all seeds. Scores are kept in DIR/seed-N, and are not computed again. `--smoke` trains one epoch a
stage of one seed, and keeps them in runs/templates-smoke. The last line has R@1 of the trained languages on validation
with the best of the templates, divided by that without.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import mean
from time import process_time

from losses import plain
from side_by_side import last_line
from tables import Scores, head, kept, over, row, spread
from unpaired_results import summary

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.train.run import Run

GOAL = 1.0
COLUMNS = {"English": "English", "trained": "trained mean", "never": "others' mean", "seconds": "CPU seconds"}
TEMPLATES = {
    "as they are": [],
    "the three of its training": ["{}", "an emoji of {}", "{} emoji"],
    "seven": ["{}", "an emoji of {}", "{} emoji", "a {}", "a picture of {}", "the symbol {}", "an icon of {}"],
}


def one(given: argparse.Namespace, seed: int, name: str, folder: Path) -> Scores:
    """Scores of a run, on both splits."""
    data = Path(given.data)
    changes = [f"seed={seed}", "evaluation=null", f"encoder=hf:{given.encoder}", f"data.captions={data}"]
    changes += [f"teacher.model=local-dir:{given.teacher}", f"data.bitext={data / 'bitext'}"]
    listed = "[" + ", ".join(f'"{template}"' for template in TEMPLATES[name]) + "]"
    changes += [f"stages.{stage}.templates={listed}" for stage in range(2)]
    changes += [f"stages.{stage}.epochs=1" for stage in range(2)] if given.smoke else []
    made, start = Run(load("quickstart_trikd", changes), folder), process_time()
    made.go()
    seconds, captions, cache = process_time() - start, read_captions(data), FeatureCache(Path(given.out) / "features")
    splits = ("valid", "test")
    return {name: summary(evaluate(made.model, captions, name, cache=cache), seconds) for name in splits}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="runs/quickstart/model/clip")
    parser.add_argument("--encoder", default="encoders/e5-small")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--out", default="runs/templates")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        given.seeds, given.out = "1", "runs/templates-smoke"
    seeds, found = [int(seed) for seed in given.seeds.split(",")], {}
    print("\n".join(head("templates", "split", *COLUMNS.values())))
    for name in TEMPLATES:
        folders = [Path(given.out) / f"seed-{seed}" / plain(name) for seed in seeds]
        made = [kept(own, partial(one, given, seed, name, own)) for seed, own in zip(seeds, folders, strict=True)]
        for split in ("valid", "test"):
            print(row(name, split, *(spread(over(made, split, key)) for key in COLUMNS)), flush=True)
        found[name] = mean(over(made, "valid", "trained"))
    without, *with_some = found.values()
    last_line("templates", max(with_some) / max(without, 1e-9), GOAL)


if __name__ == "__main__":
    main()
