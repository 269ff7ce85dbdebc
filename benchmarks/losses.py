"""Losses of the triangle on the same ground: a projector on the frozen encoder of quickstart_trikd, by loss.

    python benchmarks/losses.py [--seeds 1] [--data data/emoji] [--encoder encoders/e5-small] [--smoke]
        [--teacher runs/results/seed-{seed}/quickstart/model/clip] [--cache runs/features] [--epochs 15,30]

The rows, features, projector, steps and schedule are those of the recipe quickstart_trikd: a stage on parallel text,
then a stage on pictures and captions, in three languages. First each loss is tried alone on the first stage, then on
the second one, which always starts after mse. The learning rate of each, and a temperature or a weight where the table
CHOICES has several, are chosen on the validation split: the mean R@1 of all fourteen languages. The last tables have
the test split. Then Matryoshka: both stages with `dims`, against the same without, at each width.

`--smoke` uses made-up features and a few steps. The last line has R@1 at the shortest width, with `dims` divided by
without.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tables import head, row, spread
from torch import Tensor, nn

from mclip_kit.config.edges import Edge
from mclip_kit.config.recipe import load
from mclip_kit.data.captions import read_captions
from mclip_kit.evaluate.retrieval import score
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.projectors import build_projector
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch
from mclip_kit.train.optim import build_optimizer, learning_rate
from mclip_kit.train.run import Run

GOAL = 1.5
BATCH, WARMUP, CLIP_NORM, DECAY = 256, 50, 1.0, 0.05  # of quickstart_trikd
RATES = ((1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3))  # of the two stages
TS, IS = "teacher_text-student_text", "image-student_text"
WIDTHS = (32, 64, 96)
NAMES = ("English", "trained", "never trained", "plain, trained", "plain, never trained")

Edges = dict[str, dict[str, Any]]
Rates = tuple[tuple[float, ...], ...]
MSE = {"loss": "mse", "normalize": "both"}
LEARNED = {"loss": "sigmoid", "learned": True}
TRIKD = {"loss": "contrastive", "weight": 0.1, "temperature": 0.376}
TEXT: dict[str, list[Edges]] = {
    "mse": [{TS: MSE}],
    "cosine": [{TS: {"loss": "cosine"}}],
    "contrastive": [{TS: {"loss": "contrastive", "temperature": t}} for t in (0.07, 0.2)],
    "sigmoid": [{TS: LEARNED}],
    "kl": [{TS: {"loss": "kl", "temperature": t}} for t in (0.03, 0.07, 0.2)],
    "mse + kl": [{TS: MSE, f"{TS}+kl": {"loss": "kl", "weight": w}} for w in (0.003, 0.03)],
    "relational": [{TS: {"loss": "relational"}}],
    "cosine + relational": [
        {TS: {"loss": "cosine"}, f"{TS}+relational": {"loss": "relational", "weight": w}} for w in (1.0, 10.0)
    ],
}
PICTURES: dict[str, list[Edges]] = {
    "contrastive (TriKD, today)": [{IS: {"loss": "contrastive"}, TS: TRIKD}],
    "sigmoid": [{IS: LEARNED, TS: TRIKD}],
    "kl": [{IS: {"loss": "kl", "temperature": t}} for t in (0.03, 0.07)],
    "cosine": [{IS: {"loss": "cosine"}, TS: {"loss": "cosine"}}],
    "contrastive + cosine": [{IS: {"loss": "contrastive"}, TS: {"loss": "cosine", "weight": w}} for w in (1.0, 5.0)],
    "contrastive + kl": [{IS: {"loss": "contrastive"}, f"{IS}+kl": {"loss": "kl", "weight": w}} for w in (0.3, 1.0)],
    "contrastive + relational": [
        {IS: {"loss": "contrastive"}, TS: {"loss": "relational", "weight": w}} for w in (3.0, 30.0)
    ],
}
"""Name -> choices of edges, of the first stage and of the second one."""


@dataclass
class Split:
    """Pictures of a split, and the states of its captions by language."""

    image_GD: np.ndarray
    groups_G: np.ndarray
    strata_G: np.ndarray
    texts: dict[str, tuple[Tensor, np.ndarray]]
    """Language -> pooled states (Q, H), and the row of each caption's picture."""


@dataclass
class Ground:
    """What is the same for all losses.

    Attributes:
        stages: all rows of the two stages.
        splits: `valid` and `test`.
        trained: the languages of the rows.
        widths: H, D.
        epochs: of the two stages.
    """

    stages: list[TriangleBatch]
    splits: dict[str, Split]
    trained: list[str]
    widths: tuple[int, int]
    epochs: list[int]


class Student(nn.Module):
    """The part of a model that a triangle needs where all features are read."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        states, width = ground.widths
        settings: dict[str, Any] = {"kind": "mlp", "pool": "mean", "hidden": 1024, "dropout": 0.1, "noise": 0.8}
        self.projector = build_projector(config=SimpleNamespace(hidden_size=states), width=width, **settings)
        self.clip_projector = nn.Identity()


def train(student: Student, rows: TriangleBatch, edges: Edges, lr: float, epochs: int, seed: int) -> float:
    """Train the projector on all rows, so often, in random batches; CPU seconds."""
    torch.manual_seed(seed)
    named = {name: Edge.model_validate(edge) for name, edge in edges.items()}
    triangle = Triangle(student, named, {name for name, _ in student.named_parameters()}).train()  # type: ignore[arg-type]
    optimizer = build_optimizer(triangle, "adamw", lr, DECAY, (0.9, 0.999), 1e-8)
    given = {f.name: getattr(rows, f.name) for f in fields(rows) if getattr(rows, f.name) is not None}
    per_epoch = max(1, len(rows) // BATCH)
    rate = learning_rate(lr, "cosine", min(WARMUP, per_epoch), epochs * per_epoch)
    start, step = time.process_time(), 0
    for _ in range(epochs):
        order = torch.randperm(len(rows))[: per_epoch * BATCH].view(per_epoch, -1)
        for own in order:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            optimizer.zero_grad()
            triangle(TriangleBatch(**{name: column[own] for name, column in given.items()}))["loss"].backward()
            nn.utils.clip_grad_norm_(triangle.parameters(), CLIP_NORM)
            optimizer.step()
            step += 1
    return time.process_time() - start


@torch.no_grad()
def scores(student: Student, ground: Ground, split: str, width: int | None = None) -> dict[str, float]:
    """R@1, text to image, in percent: `NAMES`, and `all`, the mean over languages."""
    student.eval()
    own = ground.splits[split]
    image_GD = F.normalize(torch.from_numpy(own.image_GD[:, :width]), dim=-1).numpy()
    found: dict[str, tuple[float, float]] = {}
    for language, (pooled_QH, places_Q) in own.texts.items():
        text_QD = F.normalize(student.projector.head(pooled_QH)[:, :width], dim=-1).numpy()
        ranks = score(image_GD, text_QD, own.groups_G, places_Q, own.strata_G)
        found[language] = ranks.scores()["t2i_r1"], ranks.scores("plain")["t2i_r1"]
    groups = [[n for n in found if (n in ground.trained) == wanted] for wanted in (True, False)]
    means = [[mean(found[name][part] for name in names) for names in groups] for part in (0, 1)]
    values = (found["en"][0], *means[0], *means[1])
    return dict(zip(NAMES, values, strict=True)) | {"all": mean(value for value, _ in found.values())}


def best(
    ground: Ground,
    choices: list[Edges],
    stage: int,
    seed: int,
    start: dict[str, Tensor] | None,
    rates: Rates,
) -> tuple[Student, dict[str, Any]]:
    """The student of the choice and the rate that are best on the validation split, and what is known of it."""
    found: list[tuple[float, float, Student, dict[str, Any]]] = []
    for edges, lr in product(choices, rates[stage]):
        torch.manual_seed(seed)
        student = Student(ground)
        if start is not None:
            student.load_state_dict(start)
        seconds = train(student, ground.stages[stage], edges, lr, ground.epochs[stage], seed)
        valid = scores(student, ground, "valid")["all"]
        found.append((valid, -lr, student, {"lr": lr, "edges": edges, "seconds": seconds, "valid": valid}))
    _, _, student, facts = max(found, key=lambda item: item[:2])
    return student, facts | {"test": scores(student, ground, "test")}


def one_seed(ground: Ground, seed: int, rates: Rates) -> dict[str, Any]:
    """Both stages with each loss, and Matryoshka."""
    first: dict[str, Any] = {}
    students: dict[str, Student] = {}
    for name, choices in TEXT.items():
        students[name], first[name] = best(ground, choices, 0, seed, None, rates)
        tell(seed, name, first[name])
    start = students["mse"].state_dict()
    second: dict[str, Any] = {}
    for name, choices in PICTURES.items():
        students[name], second[name] = best(ground, choices, 1, seed, start, rates)
        tell(seed, name, second[name])
    whole, today = students["contrastive (TriKD, today)"], second["contrastive (TriKD, today)"]
    dims = [width for width in WIDTHS if width < ground.widths[1]] or [ground.widths[1] // 2]
    cut = [with_dims(edges, [*dims, "full"]) for edges in (first["mse"]["edges"], today["edges"])]
    early, _ = best(ground, [cut[0]], 0, seed, None, rates)
    late, facts = best(ground, [cut[1]], 1, seed, early.state_dict(), rates)
    tell(seed, "with dims", facts)
    widths: dict[int, Any] = {}
    for width in (*dims, ground.widths[1]):
        widths[width] = {"with": scores(late, ground, "test", width), "without": scores(whole, ground, "test", width)}
    return {"text": first, "pictures": second, "widths": widths}


def with_dims(edges: Edges, dims: list[Any]) -> Edges:
    """The same losses, of prefixes too."""
    return {name: {**edge, "dims": dims} for name, edge in edges.items()}


def tell(seed: int, name: str, facts: dict[str, Any]) -> None:
    """A line about a loss: what was chosen, and what it gave."""
    test = "  ".join(f"{label} {value:.1f}" for label, value in facts["test"].items() if label != "all")
    print(f"seed {seed}  {name}: lr {facts['lr']:g}, {facts['seconds']:.1f} s, valid {facts['valid']:.1f}; test {test}")
    print(f"    {facts['edges']}", flush=True)


def read_ground(seed: int, asked: argparse.Namespace, more: Iterable[str] = ()) -> Ground:
    """The rows and features of quickstart_trikd, with more changes of it."""
    teacher = asked.teacher.format(seed=seed)
    changes = [f"seed={seed}", f"teacher.model=local-dir:{teacher}", f"encoder=hf:{asked.encoder}"]
    changes += [f"data.captions={asked.data}", f"data.bitext={asked.data}/bitext", f"cache.folder={asked.cache}", *more]
    run = Run(load("quickstart_trikd", changes), Path(asked.out))
    stages = [task.batches.batch(np.arange(len(task.batches.rows))) for task in run.tasks()]
    captions, towers = read_captions(asked.data), FrozenTowers(run.model, run.cache)  # type: ignore[arg-type]
    splits = {name: read_split(captions, towers, name) for name in ("valid", "test")}
    trained = [str(language) for language in run.recipe.stages[0].languages]  # type: ignore[attr-defined]
    widths = int(stages[0].pooled_BH.shape[1]), int(stages[1].image_BE.shape[1])  # type: ignore[union-attr]
    return Ground(stages, splits, trained, widths, asked.epochs)


def read_split(captions: Any, towers: FrozenTowers, name: str) -> Split:
    """Features of a split, in all languages."""
    images_G = captions.gallery(name)
    rows_Q = captions.select(name, "all")
    texts, languages_Q = {}, captions.languages[rows_Q]
    for language in dict.fromkeys(languages_Q.tolist()):
        own_Q = rows_Q[languages_Q == language]
        tokens = towers.model.student_tokens(captions.texts[own_Q].tolist())
        texts[str(language)] = towers.pooled(tokens).take(), np.searchsorted(images_G, captions.images[own_Q])
    image_GD = towers.images(captions, images_G).take().float().numpy()
    return Split(image_GD, captions.groups[images_G], captions.strata[images_G], texts)


def made_up(seed: int) -> Ground:
    """A ground of random features: the states are a map of the teacher's embeddings, with noise by language."""
    draw = torch.Generator().manual_seed(seed)
    states, width, count = 24, 16, 512
    to_states = torch.randn(width, states, generator=draw)

    def noisy(embedding_ND: Tensor, by: float) -> Tensor:
        return embedding_ND + by * torch.randn(embedding_ND.shape, generator=draw)

    def pooled(embedding_ND: Tensor) -> Tensor:
        return noisy(embedding_ND @ to_states, 0.5)

    def rows(count: int) -> TriangleBatch:
        image_NE = torch.randn(count, width, generator=draw)
        teacher_NE = noisy(image_NE, 0.3)
        whole = torch.ones(count, dtype=torch.bool)
        facts: dict[str, Any] = {"languages_B": whole.long(), "groups_B": torch.arange(count), "has_teacher_B": whole}
        return TriangleBatch(image_BE=image_NE, teacher_BE=teacher_NE, pooled_BH=pooled(teacher_NE), **facts)

    def split() -> Split:
        image_GD = torch.randn(64, width, generator=draw)
        texts = {name: (pooled(noisy(image_GD, by)), np.arange(64)) for name, by in (("en", 0.3), ("pt", 0.9))}
        strata = np.array(["plain", "composed"] * 32)
        return Split(image_GD.numpy(), np.arange(64), strata, texts)

    return Ground([rows(count), rows(count)], {"valid": split(), "test": split()}, ["en"], (states, width), [2, 2])


def page(seeds: list[dict[str, Any]]) -> Iterator[str]:
    """Tables: each stage by loss, and R@1 by width."""
    for part, title in (
        ("text", "First stage alone: parallel text"),
        ("pictures", "Second stage: pictures, after mse"),
    ):
        yield from (f"### {title}", "", *head("T2I R@1", *NAMES, "CPU seconds"))
        for name in seeds[0][part]:
            cells = [spread([seed[part][name]["test"][label] for seed in seeds]) for label in NAMES]
            yield row(name, *cells, f"{mean(seed[part][name]['seconds'] for seed in seeds):.0f}")
        yield ""
    yield from ("### Matryoshka: both stages with `dims`, and without", "")
    columns = [f"{label}, {way}" for label in NAMES[:3] for way in ("with", "without")]
    yield from head("width", *columns)
    for width in seeds[0]["widths"]:
        values = [[s["widths"][width][way][label] for s in seeds] for label in NAMES[:3] for way in ("with", "without")]
        yield row(str(width), *map(spread, values))


def main() -> None:
    """Train, print the tables and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--encoder", default="encoders/e5-small")
    parser.add_argument("--teacher", default="runs/results/seed-{seed}/quickstart/model/clip")
    parser.add_argument("--cache", default="runs/features")
    parser.add_argument("--out", default="runs/losses", help="the run's folder, which stays empty")
    parser.add_argument("--epochs", default="15,30", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    numbers = [1] if asked.smoke else [int(seed) for seed in asked.seeds.split(",")]
    rates = tuple(own[:1] for own in RATES) if asked.smoke else RATES
    grounds = ((seed, made_up(seed) if asked.smoke else read_ground(seed, asked)) for seed in numbers)
    seeds = [one_seed(ground, seed, rates) for seed, ground in grounds]
    print("\n" + "\n".join(page(seeds)))
    shortest = min(seeds[0]["widths"])
    ways = [mean(seed["widths"][shortest][way]["trained"] for seed in seeds) for way in ("with", "without")]
    print(f"losses ratio={ways[0] / max(ways[1], 1e-9):.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
