"""What `pool: cls` or `mean` costs against `eos`, mCLIP's own, on quickstart_trikd's frozen encoder.

    python benchmarks/pool_results.py [--seeds 1,2,3]

open_clip and transformers have no text tower that pools eos, so a model for them is trained with another pool. The
teacher of a seed is that of runs/results/seed-N/quickstart, which `make results` trains; it puts the section into
docs/results.md, too. Scores are kept in runs/results/seed-N/pool_POOL and are not computed again.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import mean

from tables import Scores, head, kept, over, row, spread

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.retrieval import TEACHER, evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.run import Run

POOLS = ("eos", "cls", "mean")
EMBEDDED = Path("data/emoji")


def one_seed(seed: int, folder: Path, smoke: bool = False) -> Scores:
    """Test scores of each pool, by language; `folder` is the seed's and has quickstart/model."""
    changes = [
        f"seed={seed}",
        f"teacher.model=local-dir:{folder / 'quickstart' / 'model' / 'clip'}",
        f"cache.folder={folder.parent / 'features'}",  # shared by the pools
        *(["stages.0.epochs=1", "stages.1.epochs=1"] if smoke else []),
    ]
    return {
        pool: kept(
            folder / f"pool_{pool}", partial(scored, [*changes, f"projector.pool={pool}"], folder / f"pool_{pool}")
        )
        for pool in POOLS
    }


def scored(changes: list[str], folder: Path) -> Scores:
    """Train quickstart_trikd with changes; its scores by language."""
    recipe = load("quickstart_trikd", [*changes, "evaluation.every_epochs=1000"])
    Run(recipe, folder).go()
    cache = FeatureCache(Path(str(recipe.cache.folder)))
    found = evaluate(load_model(folder / "model"), read_captions(EMBEDDED), "test", "all", cache=cache)
    return {name: result.scores() for name, result in found.items()}


def section(seeds: list[Scores], trained: list[str]) -> list[str]:
    """Lines of docs/results.md."""
    unseen = [name for name in seeds[0]["eos"] if name not in (*trained, TEACHER)]
    groups = {f"{len(trained)} trained": trained, f"{len(unseen)} never trained": unseen}
    lines = [
        "### What the pool costs",
        "",
        "mCLIP pools the end token; open_clip and transformers cannot (docs/exports.md). The same recipe, teacher and "
        "frozen encoder, with each pool; multilingual-e5-small itself was trained with `mean`.",
        "",
        *head("T2I R@1", *(f"mean of {group}" for group in groups)),
    ]
    for pool in POOLS:
        rows = [
            [mean(over([seed], pool, name, "t2i_r1")[0] for name in names) for seed in seeds]
            for names in groups.values()
        ]
        lines.append(row(pool, *map(spread, rows)))
    return lines


def main() -> None:
    """Train what is missing; print the section, and the worst pool's share of eos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    asked = parser.parse_args()
    trained = [str(language) for language in load("quickstart_trikd").stages[0].languages]
    root = Path("runs", "results")
    numbers = [int(seed) for seed in asked.seeds.split(",")]
    seeds = [one_seed(seed, root / f"seed-{seed}") for seed in numbers]
    print("\n".join(section(seeds, trained)))
    share = [mean(seed[pool][name]["t2i_r1"] for seed in seeds for name in trained) for pool in POOLS]
    print(f"pool_results ratio={min(share[1:]) / share[0]:.2f} goal=1.00")


if __name__ == "__main__":
    main()
