"""What unpaired text and the closed-form start are worth to languages that quickstart_trikd does not train.

    python benchmarks/unpaired_results.py [--seeds 1,2,3] [--smoke]

The teacher of a seed is that of runs/results/seed-N/quickstart, which `make results` trains. Scores are kept in
runs/unpaired/seed-N and are not computed again; `--smoke` trains one epoch a stage. Unpaired text of a language are
a thousand different names of the training split in random order, without those that valid or test have too; their
pictures and translations are not used. They are names of the pictures that English is trained on, so each has a
translation among the English names: lines from elsewhere have fewer. The rows:

    today                  quickstart_trikd
    closed form            projector.init: ridge, before the first step
    closed form, trained   the same after both stages
    moved means            today's model; a language's states are moved so that their mean is that of trained languages
    mined, N times         lines and English names that are nearest to each other by margin (arXiv 1811.01136), with
                           moved means the first time, become captions of stage 2; no language is named at query time
"""

import argparse
import csv
import json
import shutil
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tables import Scores, head, kept, row, spread
from torch import Tensor

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.evaluate.retrieval import TEACHER, evaluate, score
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.closed_form import LAMBDAS
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.train.run import Run

GOAL = 20.0  # R@1, mean of the languages that are not trained
EMBEDDED = Path("data/emoji")
TRAINED = ("en", "fr", "zh")
LINES, NEIGHBOURS, ROUNDS = 1000, 4, 2


def summary(found: dict[str, Any], seconds: float) -> Scores:
    """The figures of a row, from the retrieval of each language."""
    scores = {name: result.scores() for name, result in found.items() if name != TEACHER}
    others = [name for name in scores if name not in TRAINED]
    plain = [found[name].scores("plain")["t2i_r1"] for name in others]
    return {
        "English": scores["en"]["t2i_r1"],
        "trained": mean(scores[name]["t2i_r1"] for name in TRAINED),
        "never": mean(scores[name]["t2i_r1"] for name in others),
        "never10": mean(scores[name]["t2i_r10"] for name in others),
        "plain": mean(plain),
        "seconds": seconds,
    }


def trained(changes: list[str], folder: Path) -> Scores:
    """Train quickstart_trikd with changes: `start`, before the first step, and `end`; `valid` is of the end."""
    recipe = load("quickstart_trikd", [*changes, "evaluation.every_epochs=1000"])
    cache, captions, validate = FeatureCache(Path(str(recipe.cache.folder))), read_captions(EMBEDDED), evaluator(recipe)
    assert validate
    calls, began, starts = 0, time.monotonic(), dict[str, Any]()
    first = len(LAMBDAS) if recipe.projector and recipe.projector.init == "ridge" else 0

    def scorer(model: Any, features: FeatureCache, task: Any) -> Any:
        nonlocal calls
        if calls == first:  # those before choose lambda
            starts["start"] = summary(evaluate(model, captions, "test", cache=features), time.monotonic() - began)
        calls += 1
        return validate(model, features, task)

    Run(recipe, folder, scorer).go()
    seconds, model = time.monotonic() - began, load_model(folder / "model")
    ends = {split: summary(evaluate(model, captions, split, cache=cache), seconds) for split in ("test", "valid")}
    return {**starts, "end": ends["test"], "valid": ends["valid"]}


def lines_of(captions: Captions, language: str, seed: int) -> list[str]:
    """Unpaired lines of a language."""
    own, inside = captions.languages.isin([language]), captions.splits.isin(["train"])
    kept_out = {*captions.texts[np.flatnonzero(~inside)].tolist()}
    texts = sorted({*captions.texts[np.flatnonzero(own & inside)].tolist()} - kept_out)
    return [texts[place] for place in np.random.default_rng(seed).permutation(len(texts))[:LINES]]


class States:
    """Pooled states of texts, and the shift of a language's states to the mean of the trained languages."""

    def __init__(self, model: MultilingualClip, cache: FeatureCache, captions: Captions, lines: dict[str, list[str]]):
        self.model, self._towers = model, FrozenTowers(model, cache)
        rows = {name: captions.select("train", [name]) for name in TRAINED}
        means = [self.of(captions.texts[own].tolist()).mean(0) for own in rows.values()]
        centre_H = torch.stack(means).mean(0)
        self.shifts = {name: centre_H - self.of(own).mean(0) for name, own in lines.items()}

    def of(self, texts: list[str]) -> Tensor:
        """Pooled states (N, H)."""
        return self._towers.pooled(self.model.student_tokens(texts)).take()

    @torch.no_grad()
    def embed(self, texts: list[str], language: str, moved: bool) -> Tensor:
        """Embeddings (N, D), from moved states if `moved`."""
        states_NH = self.of(texts) + self.shifts.get(language, torch.zeros(())) * moved
        embedding_ND: Tensor = F.normalize(self.model.projector.head(states_NH), dim=-1)
        return embedding_ND


def nearest_pairs(a_ND: Tensor, b_MD: Tensor) -> list[tuple[int, int]]:
    """Rows of two sides that are nearest to each other by ratio margin (Artetxe & Schwenk, arXiv 1811.01136)."""
    scores_NM = a_ND @ b_MD.T
    near_N, near_M = (scores_NM.topk(NEIGHBOURS, dim).values.mean(dim) for dim in (1, 0))
    margin_NM = 2 * scores_NM / (near_N[:, None] + near_M)
    best_N, best_M = margin_NM.argmax(1), margin_NM.argmax(0)
    return [(i, j) for i, j in enumerate(best_N.tolist()) if int(best_M[j]) == i and float(margin_NM[i, j]) > 1]


def moved_means(folder: Path, cache: FeatureCache, lines: dict[str, list[str]]) -> Scores:
    """Test and validation scores of a model with moved means."""
    model, captions = load_model(folder / "model"), read_captions(EMBEDDED)
    states, began, found = States(model, cache, captions, lines), time.monotonic(), {}
    towers = FrozenTowers(model, cache)
    for split in ("test", "valid"):
        images_G = captions.gallery(split)
        image_GD = F.normalize(towers.images(captions, images_G).take(), dim=-1).numpy()
        results = {}
        for name in (*TRAINED, *lines):
            rows_Q = captions.select(split, [name])
            text_QD = states.embed(captions.texts[rows_Q].tolist(), name, moved=True).numpy()
            places_Q = np.searchsorted(images_G, captions.images[rows_Q])
            shown = captions.groups[images_G], places_Q, captions.strata[images_G]
            results[name] = score(image_GD, text_QD, *shown)
        found[split] = summary(results, time.monotonic() - began)
    return {"end": found["test"], "valid": found["valid"]}


def mine(model_folder: Path, cache: FeatureCache, lines: dict[str, list[str]], moved: bool, folder: Path) -> float:
    """Write a copy of the corpus in which pairs that are found replace the training captions of other languages.

    Returns:
        The share of pairs whose line names the picture that it was given.
    """
    model, captions = load_model(model_folder / "model"), read_captions(EMBEDDED)
    states, english = States(model, cache, captions, lines), captions.select("train", ["en"])
    names_MD = states.embed(captions.texts[english].tolist(), "en", moved=False)
    written, right = list[tuple[str, str, str, str]](), list[bool]()
    for language, own in lines.items():
        true = captions.select("train", [language])
        groups = dict(zip(captions.texts[true].tolist(), captions.groups[captions.images[true]], strict=True))
        for i, j in nearest_pairs(states.embed(own, language, moved), names_MD):
            image = captions.images[english[j]]
            written.append((captions.names[image], language, "train", own[i]))
            right.append(bool(groups[own[i]] == captions.groups[image]))
    copy_with(written, folder, set(lines))
    return float(np.mean(right))


def copy_with(written: list[tuple[str, str, str, str]], folder: Path, replaced: set[str]) -> None:
    """Copy the prepared corpus, with other training captions of some languages."""
    shutil.copytree(EMBEDDED, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | {"files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    captions = read_captions(EMBEDDED)
    columns = zip(captions.images, captions.languages, captions.splits, captions.texts, strict=True)
    rows = [(captions.names[image], *rest) for image, *rest in columns if rest[0] not in replaced or rest[1] != "train"]
    for name in ("images", "captions", "uncaptioned"):
        (folder / f"{name}.arrow").unlink(missing_ok=True)
    with (folder / "captions.tsv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        out.writerows([("image", "language", "split", "caption"), *rows, *written])
    with (folder / "images.tsv").open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        groups = zip(captions.names, captions.groups, captions.strata, strict=True)
        out.writerows([("image", "group", "stratum"), *groups])


def mined(changes: list[str], folder: Path, cache: FeatureCache, lines: dict[str, list[str]], before: Path) -> Scores:
    """Mine with the model of a run, and train again with what was found."""
    corpus = folder.parent / f"{folder.name}-corpus"
    shutil.rmtree(corpus, ignore_errors=True)
    right = mine(before, cache, lines, moved=before.name == "today", folder=corpus)
    more = f"[{', '.join([*TRAINED, *lines])}]"
    found = trained([*changes, f"data.captions={corpus}", f"stages.1.languages={more}"], folder)
    return {**found, "right": right}


def one_seed(seed: int, root: Path, smoke: bool) -> dict[str, Scores]:
    """The rows of a seed."""
    teacher, folder = Path("runs", "results", f"seed-{seed}", "quickstart", "model", "clip"), root / f"seed-{seed}"
    changes = [f"seed={seed}", f"teacher.model=local-dir:{teacher}", f"cache.folder={root / 'features'}"]
    changes += ["stages.0.epochs=1", "stages.1.epochs=1"] if smoke else []
    cache, captions = FeatureCache(root / "features"), read_captions(EMBEDDED)
    others = [name for name in captions.languages.present() if name not in TRAINED]
    lines = {name: lines_of(captions, name, seed) for name in others}

    def rows(name: str, *more: str) -> Scores:
        return kept(folder / name, partial(trained, [*changes, *more], folder / name))

    today, closed = rows("today"), rows("ridge", "projector.init=ridge")
    found = {"today": today, "closed form": {"end": closed["start"]}, "closed form, trained": closed}
    found["moved means"] = kept(folder / "moved", partial(moved_means, folder / "today", cache, lines))
    before = folder / "today"
    for number in range(1, (1 if smoke else ROUNDS) + 1):
        own = folder / f"mined-{number}"
        found[f"mined, {number} times"] = kept(own, partial(mined, changes, own, cache, lines, before))
        before = own
    return found


def main() -> None:
    """Train what is missing; print the rows, and the best row by validation as a share of the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    numbers = [1] if asked.smoke else [int(seed) for seed in asked.seeds.split(",")]
    root = Path("runs", "unpaired-smoke" if asked.smoke else "unpaired")
    seeds = [one_seed(seed, root, asked.smoke) for seed in numbers]
    columns = {"English": "English", "trained": "trained, R@1", "never": "never trained, R@1"}
    columns |= {"never10": "never trained, R@10", "plain": "plain, never trained", "seconds": "seconds"}
    print("\n".join(head("T2I, test", *columns.values())))
    for name in seeds[0]:
        print(row(name, *(spread([seed[name]["end"][key] for seed in seeds]) for key in columns)))
    valid = {
        name: mean(seed[name]["valid"]["never"] for seed in seeds) for name in seeds[0] if "valid" in seeds[0][name]
    }
    best = max(valid, key=lambda name: valid[name])
    print(f"best on validation: {best}, R@1 {valid[best]:.1f} there")
    print(f"unpaired_results ratio={mean(seed[best]['end']['never'] for seed in seeds) / GOAL:.2f} goal=1")


if __name__ == "__main__":
    main()
