"""Write docs/results.md: both quickstarts on the embedded corpus, scored on pictures that no stage has seen.

    python benchmarks/results.py [--seeds 1,2,3] [--smoke]

The scores of each seed are kept in runs/results/ and are not computed again. `--smoke` trains one epoch per stage and
does not write to docs/. The parts on Multi30K (mte_results.py, finetune_results.py) need its text. The last line
compares the student's weakest language with the teacher's English.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import finetune_results
import mte_results
import numpy as np
import pool_results
from tables import Scores, asked, at_hand, head, kept, over, row, spread

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.report.tables import Results
from mclip_kit.evaluate.retrieval import TEACHER, evaluate
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.files import write_text
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.base import Scores as Validated
from mclip_kit.train.run import Run

GOAL = 0.8  # of the teacher's English R@1, for the student's weakest language
STRATA = ("composed", "plain", "flags")
ABLATIONS = {  # of teacher learning, with the same number of steps
    "English to English only": ["stages.1.languages=[en]", "stages.1.epochs=50"],
    "without English to English": ["stages.1.include_english=false"],
}
Place = tuple[str, str, str]
"""Recipe, stage, and `start` or `end`."""


def scored_run(recipe: Recipe, folder: Path) -> Scores:
    """Train a recipe; test scores of each stage, at its start and at its end."""
    assert recipe.evaluation
    captions = read_captions(str(recipe.data.captions))
    validate = evaluator(recipe)
    assert validate
    stages: dict[str, Scores] = {}

    def score(model: MultilingualClip, cache: FeatureCache, task: Any) -> Validated:
        results = evaluate(model, captions, "test", recipe.evaluation.languages, cache=cache)  # type: ignore[union-attr]
        place = stages.setdefault(task.stage.name, {"start": scores_of(results)})
        place["end"] = scores_of(results)
        return validate(model, cache, task)

    Run(recipe, folder, score).go()
    return stages


def scores_of(results: Results) -> Scores:
    """Scores of each language, and of each stratum and language, in percent."""
    some = next(iter(results.values()))
    return {
        "images": some.gallery,
        "scores": {name: result.scores() for name, result in results.items()},
        "strata": {
            str(stratum): {name: result.scores(str(stratum)) for name, result in results.items()}
            for stratum in np.unique(some.strata_G)
        },
    }


def one_seed(seed: int, root: Path, smoke: bool) -> Scores:
    """Both quickstarts with one seed; the second uses the teacher of the first."""
    common = [f"seed={seed}", "evaluation.every_epochs=1000"]
    epochs = [f"stages.{stage}.epochs=1" for stage in range(3)] if smoke else []
    folder = root / f"seed-{seed}"
    teacher = f"teacher.model=local-dir:{folder / 'quickstart' / 'model' / 'clip'}"
    recipes = {"quickstart": [*common, *epochs], "quickstart_trikd": [*common, *epochs[:2], teacher]}
    scores = {
        name: kept(folder / name, partial(scored_run, load(name, changes), folder / name))
        for name, changes in recipes.items()
    }
    for name, changes in ABLATIONS.items():
        recipe = load("quickstart", [*common, teacher, "teacher.weights=null", *changes, *epochs[1:2]])
        learning = recipe.model_copy(update={"stages": recipe.stages[1:2]})
        scores[name] = kept(folder / name, partial(scored_run, learning, folder / name))
    scores["pools"] = pool_results.one_seed(seed, folder, smoke)
    scores["distilled"] = mte_results.distilled(seed, root, smoke)
    parallel = mte_results.multi30k(root, at_hand())
    if parallel:
        scores["translations"] = mte_results.translations(seed, root, parallel, smoke)
    tuned = finetune_results.one_seed(seed, folder, at_hand(), smoke)
    return scores | ({finetune_results.NAME: tuned} if tuned else {})


def tops(
    seeds: list[Scores], place: Place, names: list[str], part: str = "", ks: Sequence[int] = (1, 5, 10)
) -> list[str]:
    """Text-to-image R@k: mean over languages, then mean and standard deviation over seeds; `part` is a stratum."""
    inner = ("strata", part) if part else ("scores",)
    scores = [[over(seeds, *place, *inner, name, f"t2i_r{k}") for name in names] for k in ks]
    return [spread([mean(languages) for languages in zip(*values, strict=True)]) for values in scores]


def quickstart_table(seeds: list[Scores]) -> list[str]:
    """quickstart: the teacher, each language after both student stages, means with strata."""
    first, last = ("quickstart", "distill", "end"), ("quickstart", "contrast", "end")
    names = [name for name in seeds[0]["quickstart"]["contrast"]["end"]["scores"] if name != TEACHER]
    groups = [*((name, [name], "") for name in names), ("**mean of ten**", names, ""), *((s, names, s) for s in STRATA)]
    return [
        *head("T2I", "R@1 after MSE", "R@1 after contrast", "R@5", "R@10"),
        row("teacher, English", "", *tops(seeds, last, [TEACHER])),
        *(
            row(label, *tops(seeds, first, own, part, [1]), *tops(seeds, last, own, part))
            for label, own, part in groups
        ),
    ]


def trikd_table(seeds: list[Scores], trained: list[str]) -> list[str]:
    """quickstart_trikd: trained and never-trained languages, before and after training."""
    names = [name for name in seeds[0]["quickstart_trikd"]["trikd"]["end"]["scores"] if name != TEACHER]
    unseen = [name for name in names if name not in trained]
    groups = {f"{len(trained)} trained": trained, f"{len(unseen)} never trained": unseen}
    places = {"untrained projector": ("align", "start"), "after MSE": ("align", "end"), "after TriKD": ("trikd", "end")}
    end = ("quickstart_trikd", "trikd", "end")
    lines = head("T2I", "R@1", "R@5", "R@10")
    for label, place in places.items():
        for group, own in groups.items():
            lines.append(row(f"{label}, mean of {group}", *tops(seeds, ("quickstart_trikd", *place), own)))
    lines += [row(f"{part}, {group}", *tops(seeds, end, own, part)) for part in STRATA for group, own in groups.items()]
    lines += [row(f"{name}{' (trained)' if name in trained else ''}", *tops(seeds, end, [name])) for name in names]
    return lines


def ablation_table(seeds: list[Scores]) -> list[str]:
    """Teacher learning on a part of its data, as in AltCLIP's ablation."""
    names = [name for name in seeds[0]["quickstart"]["distill"]["end"]["scores"] if name not in (TEACHER, "en")]
    runs = {"all data": "quickstart", **{name: name for name in ABLATIONS}}
    lines = head("R@1, T2I", "English", f"mean of {len(names)} others")
    for label, run in runs.items():
        place = run, "distill", "end"
        lines.append(row(label, *tops(seeds, place, ["en"], ks=[1]), *tops(seeds, place, names, ks=[1])))
    return lines


def page(seeds: list[Scores], numbers: list[int]) -> str:
    """docs/results.md."""
    some = seeds[0]["quickstart"]["contrast"]["end"]
    trained = [str(language) for language in load("quickstart_trikd").stages[0].languages]
    tuned = [seed[finetune_results.NAME] for seed in seeds if finetune_results.NAME in seed]
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make results` (benchmarks/results.py). Percent on the embedded corpus's test split: "
            f"{some['images']} pictures that no stage has seen, {len(numbers)} seeds, mean ± standard deviation. "
            f"Chance R@1 is {100 / some['images']:.2f}. Any picture that looks the same is a right answer; ties count "
            "as misses.",
            "",
            "## quickstart: a CLIP from scratch, then AltCLIP's two stages, ten languages",
            "",
            *quickstart_table(seeds),
            "",
            "### What teacher learning needs",
            "",
            "After the MSE stage alone, with the same teacher, student and number of steps "
            "(AltCLIP's ablation at a small size).",
            "",
            *ablation_table(seeds),
            "",
            "## quickstart_trikd: projectors on a frozen multilingual-e5-small",
            "",
            "The projector is trained on pictures and text in three languages only.",
            "",
            *trikd_table(seeds, trained),
            "",
            *pool_results.section([seed["pools"] for seed in seeds], trained),
            "",
            *mte_results.section(seeds),
            *([*finetune_results.section(tuned), ""] if len(tuned) == len(seeds) else []),
        ]
    )


def main() -> None:
    """Train what is missing, write the page, print the ratio."""
    numbers, root, smoke = asked(__doc__, "results")
    seeds = [one_seed(seed, root, smoke) for seed in numbers]
    text = page(seeds, numbers)
    if smoke:
        print(text)
    else:
        write_text(Path("docs", "results.md"), text)
    end = ("quickstart", "contrast", "end", "scores")
    names = [name for name in seeds[0]["quickstart"]["contrast"]["end"]["scores"] if name != TEACHER]
    weakest = min(min(over(seeds, *end, name, "t2i_r1")) for name in names)
    ratio = min(mean(over(seeds, *end, name, "t2i_r1")) / mean(over(seeds, *end, TEACHER, "t2i_r1")) for name in names)
    print(f"weakest language, any seed: R@1 {weakest:.1f}")
    print(f"results ratio={ratio:.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
