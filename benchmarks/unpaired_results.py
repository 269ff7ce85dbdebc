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
    CORAL                  the same, and their covariance too (arXiv 1607.01719)
    mined, second stage    quickstart_unpaired, but that pairs are rows of the second stage alone
    mined                  quickstart_unpaired: pairs that the frozen encoder finds are rows of both stages
"""

import time
from functools import partial
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tables import Scores, asked, head, kept, row, spread
from torch import Tensor

from mclip_kit.config.recipe import load
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.unpaired import sentences_of
from mclip_kit.evaluate.retrieval import TEACHER, evaluate, score
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.files import write_text
from mclip_kit.models.closed_form import LAMBDAS
from mclip_kit.models.multilingual_clip import load as load_model
from mclip_kit.tasks.mining import PAIRS
from mclip_kit.train.run import Run

GOAL = 20.0  # R@1, mean of the languages that are not trained
EMBEDDED = Path("data/emoji")
TRAINED = ("en", "fr", "zh")
LINES = 1000


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


def trained(name: str, changes: list[str], folder: Path) -> Scores:
    """Train a recipe with changes: `start`, before the first step, and `end`; `valid` is of the end."""
    recipe = load(name, [*changes, "evaluation.every_epochs=1000"])
    cache, captions, validate = FeatureCache(Path(str(recipe.cache.folder))), read_captions(EMBEDDED), evaluator(recipe)
    assert validate
    calls, began, starts = 0, time.process_time(), dict[str, Any]()
    first = len(LAMBDAS) if recipe.projector and recipe.projector.init == "ridge" else 0

    def scorer(model: Any, features: FeatureCache, task: Any) -> Any:
        nonlocal calls
        if calls == first:  # those before choose lambda
            starts["start"] = summary(evaluate(model, captions, "test", cache=features), time.process_time() - began)
        calls += 1
        return validate(model, features, task)

    Run(recipe, folder, scorer).go()
    seconds, model = time.process_time() - began, load_model(folder / "model")
    ends = {split: summary(evaluate(model, captions, split, cache=cache), seconds) for split in ("test", "valid")}
    return {**starts, "end": ends["test"], "valid": ends["valid"]}


class Moved:
    """Pooled states of a language, moved so that their mean, and their covariance, are those of trained languages."""

    def __init__(self, towers: FrozenTowers, captions: Captions, lines: dict[str, list[str]], coral: bool) -> None:
        self._towers = towers
        trained = [self.states(captions.texts[captions.select("train", [name])].tolist()) for name in TRAINED]
        self._centre_H = torch.stack([own.mean(0) for own in trained]).mean(0)
        self._means = {name: self.states(own).mean(0) for name, own in lines.items()}
        self._maps = dict[str, Tensor]()
        if coral:
            wanted_HH = torch.stack([shrunk(own) for own in trained]).mean(0)
            for name, own in lines.items():
                self._maps[name] = power(shrunk(self.states(own)), -0.5) @ power(wanted_HH, 0.5)

    def states(self, texts: list[str]) -> Tensor:
        """Pooled states (N, H), as they are."""
        return self._towers.pooled(self._towers.model.student_tokens(texts)).take()

    @torch.no_grad()
    def embed(self, texts: list[str], language: str) -> Tensor:
        """Embeddings (N, D) of texts of a language."""
        states_NH = self.states(texts)
        if language in self._means:
            centred_NH = states_NH - self._means[language]
            states_NH = (centred_NH @ self._maps[language] if self._maps else centred_NH) + self._centre_H
        embedding_ND: Tensor = F.normalize(self._towers.model.projector.head(states_NH), dim=-1)
        return embedding_ND


def shrunk(states_NH: Tensor, by: float = 0.1) -> Tensor:
    """Covariance (H, H), moved towards a multiple of the identity: there are few more texts than numbers."""
    covariance_HH = states_NH.T.cov()
    width = len(covariance_HH)
    return (1 - by) * covariance_HH + by * covariance_HH.trace() / width * torch.eye(width)


def power(symmetric_HH: Tensor, exponent: float) -> Tensor:
    """A power of a positive definite matrix."""
    values_H, vectors_HH = torch.linalg.eigh(symmetric_HH.double())
    return (vectors_HH * values_H.clamp(min=1e-9) ** exponent @ vectors_HH.T).float()


def moved(folder: Path, cache: FeatureCache, lines: dict[str, list[str]], coral: bool) -> Scores:
    """Test and validation scores of a model whose states are moved."""
    model, captions, began = load_model(folder / "model"), read_captions(EMBEDDED), time.process_time()
    towers, found = FrozenTowers(model, cache), dict[str, Scores]()
    states = Moved(towers, captions, lines, coral)
    for split in ("test", "valid"):
        images_G = captions.gallery(split)
        image_GD = F.normalize(towers.images(captions, images_G).take(), dim=-1).numpy()
        results = {}
        for name in (*TRAINED, *lines):
            rows_Q = captions.select(split, [name])
            text_QD = states.embed(captions.texts[rows_Q].tolist(), name).numpy()
            places_Q = np.searchsorted(images_G, captions.images[rows_Q])
            results[name] = score(image_GD, text_QD, captions.groups[images_G], places_Q, captions.strata[images_G])
        found[split] = summary(results, time.process_time() - began)
    return {"end": found["test"], "valid": found["valid"]}


def one_seed(seed: int, root: Path, smoke: bool) -> dict[str, Scores]:
    """The rows of a seed."""
    teacher, folder = Path("runs", "results", f"seed-{seed}", "quickstart", "model", "clip"), root / f"seed-{seed}"
    changes = [f"seed={seed}", f"teacher.model=local-dir:{teacher}", f"cache.folder={root / 'features'}"]
    changes += ["stages.0.epochs=1", "stages.1.epochs=1"] if smoke else []
    cache, captions = FeatureCache(root / "features"), read_captions(EMBEDDED)
    others = [name for name in captions.languages.present() if name not in TRAINED]
    lines = {name: Random(seed).sample(sentences_of(captions, name), LINES) for name in others}
    for name, own in lines.items():
        (folder / "unpaired").mkdir(parents=True, exist_ok=True)
        write_text(folder / "unpaired" / f"{name}.txt", "".join(f"{line}\n" for line in own))
    files = ", ".join(f"{name}: {folder / 'unpaired' / name}.txt" for name in others)

    def rows(name: str, recipe: str, *more: str) -> Scores:
        return kept(folder / name, partial(trained, recipe, [*changes, *more], folder / name))

    def shifted(name: str, coral: bool) -> Scores:
        return kept(folder / name, partial(moved, folder / "today", cache, lines, coral))

    unpaired, given = "quickstart_unpaired", f"data.unpaired={{{files}}}"
    closed = rows("ridge", "quickstart_trikd", "projector.init=ridge")
    return {
        "today": rows("today", "quickstart_trikd"),
        "closed form": {"end": closed["start"]},
        "closed form, trained": closed,
        "moved means": shifted("means", coral=False),
        "CORAL": shifted("coral", coral=True),
        "mined, second stage": rows("mined", unpaired, given, "stages.0.mine=null"),
        "mined": rows("mined-both", unpaired, given),
    }


def share_right(cache: Path) -> float:
    """The share of mined pairs of which both sides name a picture that looks the same."""
    captions = read_captions(EMBEDDED)
    known: dict[tuple[str, str], set[int]] = {}
    groups = captions.groups[captions.images].tolist()
    for language, text, group in zip(captions.languages, captions.texts, groups, strict=True):
        known.setdefault((str(language), str(text)), set()).add(group)
    files = [path.read_text(encoding="utf-8").splitlines()[1:] for path in cache.glob(f"rows-*/{PAIRS}")]
    pairs = [line.split("\t") for lines in files for line in lines]
    return mean(bool(known[language, line] & known["en", text]) for language, _, line, text in pairs)


def main() -> None:
    """Train what is missing; print the rows, and the best row by validation as a share of the goal."""
    numbers, root, smoke = asked(__doc__, "unpaired")
    seeds = [one_seed(seed, root, smoke) for seed in numbers]
    columns = {"English": "English", "trained": "trained, R@1", "never": "never trained, R@1"}
    columns |= {"never10": "never trained, R@10", "plain": "plain, never trained", "seconds": "CPU seconds"}
    print("\n".join(head("T2I, test", *columns.values())))
    for name in seeds[0]:
        print(row(name, *(spread([seed[name]["end"][key] for seed in seeds]) for key in columns)))
    valid = {
        name: mean(seed[name]["valid"]["never"] for seed in seeds) for name in seeds[0] if "valid" in seeds[0][name]
    }
    best = max(valid, key=lambda name: valid[name])
    print(f"pairs that are right: {100 * share_right(root / 'features'):.0f}%")
    print(f"best on validation: {best}, R@1 {valid[best]:.1f} there")
    print(f"unpaired_results ratio={mean(seed[best]['end']['never'] for seed in seeds) / GOAL:.2f} goal=1")


if __name__ == "__main__":
    main()
