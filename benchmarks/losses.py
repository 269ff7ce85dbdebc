"""Losses of the triangle on the same ground: a projector on the frozen encoder of quickstart_trikd, by loss.

    python benchmarks/losses.py [--seeds 1,2,3] [--data data/emoji] [--encoder encoders/e5-small] [--smoke]
        [--teacher runs/results/seed-{seed}/quickstart/model/clip] [--cache runs/features] [--choose]
        [--parts text,pictures,widths]

The rows, features, projector, steps and schedule are those of the recipe quickstart_trikd: a stage on parallel text,
then a stage on pictures and captions, in three languages. First each loss is tried alone on the first stage, then on
the second one, which always starts after mse at START. Then Matryoshka: both stages with `dims`, against the same
without, at each width. The tables have the test split. The scores of a row are kept in runs/losses/seed-N and are not
computed again.

The learning rate of each, and a temperature or a weight where TEXT and PICTURES have several, are in CHOSEN: those that
are best on the validation split with seed 1, by the mean R@1 of all fourteen languages. `--choose` tries them again:
all rates of RATES, and further ones while the best is at the edge.

`--smoke` uses made-up features and a few steps. The last line has R@1 at the shortest width, with `dims` divided by
without.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tables import Scores, head, kept, row, spread
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
TODAY = "contrastive (TriKD, today)"
WIDTHS = (32, 64, 96)
NAMES = ("English", "trained", "never trained", "never trained, R@10", "plain, trained", "plain, never trained")

Edges = dict[str, dict[str, Any]]
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
    TODAY: [{IS: {"loss": "contrastive"}, TS: TRIKD}],
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
PARTS = {"text": TEXT, "pictures": PICTURES}
START: tuple[Edges, float] = ({TS: MSE}, 1e-2)  # what the second stage comes after
CHOSEN: dict[str, tuple[int, float]] = {
    "text/mse": (0, 3e-2),
    "text/cosine": (0, 3e-2),
    "text/contrastive": (1, 3e-2),
    "text/sigmoid": (0, 3e-2),
    "text/kl": (1, 3e-3),
    "text/mse + kl": (1, 3e-3),
    "text/relational": (0, 3e-3),
    "text/cosine + relational": (0, 1e-2),
    "pictures/contrastive (TriKD, today)": (0, 1e-3),
    "pictures/sigmoid": (0, 3e-3),
    "pictures/kl": (1, 3e-4),
    "pictures/cosine": (0, 1e-3),
    "pictures/contrastive + cosine": (0, 1e-3),
    "pictures/contrastive + kl": (1, 3e-3),
    "pictures/contrastive + relational": (0, 1e-2),
}
"""Part and name -> which choice of edges, and the learning rate."""


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
    """R@1 (or R@10), text to image, in percent: `NAMES`, and `all`, the mean R@1 of languages."""
    student.eval()
    own = ground.splits[split]
    image_GD = F.normalize(torch.from_numpy(own.image_GD[:, :width]), dim=-1).numpy()
    found: dict[str, tuple[float, float, float]] = {}
    for language, (pooled_QH, places_Q) in own.texts.items():
        text_QD = F.normalize(student.projector.head(pooled_QH)[:, :width], dim=-1).numpy()
        ranks = score(image_GD, text_QD, own.groups_G, places_Q, own.strata_G)
        whole, plain = ranks.scores(), ranks.scores("plain")
        found[language] = whole["t2i_r1"], whole["t2i_r10"], plain["t2i_r1"]
    groups = [[n for n in found if (n in ground.trained) == wanted] for wanted in (True, False)]
    means = [[mean(found[name][part] for name in names) for names in groups] for part in (0, 1, 2)]
    values = (found["en"][0], *means[0], means[1][1], *means[2])
    return dict(zip(NAMES, values, strict=True)) | {"all": mean(value for value, *_ in found.values())}


@dataclass
class Seed:
    """The rows of a seed.

    Attributes:
        make: reads the ground, if a row is missing.
        folder: where scores are kept.
    """

    number: int
    make: Callable[[], Ground]
    folder: Path

    @cached_property
    def ground(self) -> Ground:
        """The rows and features."""
        return self.make()

    @cached_property
    def start(self) -> dict[str, Tensor]:
        """What the second stage starts from."""
        return self.student("text", *START)[0].state_dict()

    def student(
        self, part: str, edges: Edges, lr: float, start: dict[str, Tensor] | None = None
    ) -> tuple[Student, Scores]:
        """A trained student, and what is known of it; without a start, the second stage starts after mse."""
        ground, stage = self.ground, list(PARTS).index(part)
        if stage and start is None:
            start = self.start
        torch.manual_seed(self.number)
        student = Student(ground)
        if start is not None:
            student.load_state_dict(start)
        seconds = train(student, ground.stages[stage], edges, lr, ground.epochs[stage], self.number)
        valid, test = (scores(student, ground, split) for split in ("valid", "test"))
        return student, {"lr": lr, "edges": edges, "seconds": seconds, "valid": valid, "test": test}

    def row(self, part: str, name: str) -> Scores:
        """The scores of a loss."""
        made = kept(self.folder / part / plain(name), lambda: self.student(part, *option(part, name))[1])
        tell(self.number, f"{part}/{name}", made)
        return made

    def widths(self) -> Scores:
        """R@1 by width, with `dims` and without."""
        return kept(self.folder / "widths", self._widths)

    def _widths(self) -> Scores:
        (first, lr), (second, later) = START, option("pictures", TODAY)
        whole = self.ground.widths[1]
        dims = [width for width in WIDTHS if width < whole] or [whole // 2]
        early, _ = self.student("text", with_dims(first, [*dims, "full"]), lr)
        late, facts = self.student("pictures", with_dims(second, [*dims, "full"]), later, early.state_dict())
        tell(self.number, "with dims", facts)
        students = {"with": late, "without": self.student("pictures", second, later)[0]}
        return {
            str(width): {way: scores(own, self.ground, "test", width) for way, own in students.items()}
            for width in (*dims, whole)
        }

    def choose(self, part: str, name: str) -> Scores:
        """The choice and the rate that are best on validation; more rates are tried while the best is at the edge."""
        rates, tried = sorted(RATES[list(PARTS).index(part)]), dict[tuple[int, float], float]()
        while True:
            for number, edges in enumerate(PARTS[part][name]):
                for lr in rates:
                    if (number, lr) not in tried:
                        tried[number, lr] = float(self.student(part, edges, lr)[1]["valid"]["all"])
                        print(f"{part}/{name} {number} {lr:g}: valid {tried[number, lr]:.2f}", flush=True)
            (best, lr), valid = max(tried.items(), key=lambda item: item[1])
            if lr not in (rates[0], rates[-1]):
                return {"choice": best, "lr": lr, "valid": valid}
            rates = sorted({*rates, lr * 3 if lr == rates[-1] else lr / 3})


def option(part: str, name: str) -> tuple[Edges, float]:
    """The edges and the learning rate of a row."""
    choice, lr = CHOSEN[f"{part}/{name}"]
    return PARTS[part][name][choice], lr


def plain(name: str) -> str:
    """The name of a row's folder."""
    return re.sub(r"\W+", "-", name).strip("-")


def rows_of(seed: Seed, parts: list[str]) -> dict[str, Any]:
    """Both stages with each loss, and Matryoshka."""
    asked = [part for part in PARTS if part in parts]
    found: dict[str, Any] = {part: {name: seed.row(part, name) for name in PARTS[part]} for part in asked}
    return found | ({"widths": seed.widths()} if "widths" in parts else {})


def with_dims(edges: Edges, dims: list[Any]) -> Edges:
    """The same losses, of prefixes too."""
    return {name: {**edge, "dims": dims} for name, edge in edges.items()}


def tell(seed: int, name: str, facts: dict[str, Any]) -> None:
    """A line about a loss: what was chosen, and what it gave."""
    test = "  ".join(f"{label} {value:.1f}" for label, value in facts["test"].items() if label != "all")
    valid, seconds = facts["valid"]["all"], facts["seconds"]
    print(f"seed {seed}  {name}: lr {facts['lr']:g}, {seconds:.1f} s, valid {valid:.1f}; test {test}")
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
    titles = {"text": "First stage alone: parallel text", "pictures": "Second stage: pictures, after mse"}
    for part in (part for part in PARTS if part in seeds[0]):
        yield from (f"### {titles[part]}", "", *head("T2I R@1", *NAMES, "CPU seconds"))
        for name in seeds[0][part]:
            cells = [spread([seed[part][name]["test"][label] for seed in seeds]) for label in NAMES]
            yield row(name, *cells, f"{mean(seed[part][name]['seconds'] for seed in seeds):.0f}")
        yield ""
    if "widths" in seeds[0]:
        yield from ("### Matryoshka: both stages with `dims`, and without", "")
        yield from widths_table([seed["widths"] for seed in seeds])


def widths_table(seeds: list[dict[str, Any]]) -> Iterator[str]:
    """R@1 by width."""
    columns = [(label, way) for label in NAMES[:3] for way in ("with", "without")]
    yield from head("width", *(f"{label}, {way}" for label, way in columns))
    for width in seeds[0]:
        yield row(width, *(spread([seed[width][way][label] for seed in seeds]) for label, way in columns))


def choose(seed: Seed, parts: list[str]) -> None:
    """Print what is best on validation for each loss."""
    for part in (part for part in PARTS if part in parts):
        for name in PARTS[part]:
            print(part, name, seed.choose(part, name), flush=True)


def main() -> None:
    """Train, print the tables and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--encoder", default="encoders/e5-small")
    parser.add_argument("--teacher", default="runs/results/seed-{seed}/quickstart/model/clip")
    parser.add_argument("--cache", default="runs/features")
    parser.add_argument("--out", default="runs/losses-run", help="the run's folder, which stays empty")
    parser.add_argument("--epochs", default="15,30", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument("--kept", default="runs/losses")
    parser.add_argument("--parts", default="text,pictures,widths")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    numbers, parts = [1] if asked.smoke else [int(seed) for seed in asked.seeds.split(",")], asked.parts.split(",")
    kept_in = Path("runs/losses-smoke" if asked.smoke else asked.kept)
    grounds = [partial(made_up, seed) if asked.smoke else partial(read_ground, seed, asked) for seed in numbers]
    own = [Seed(seed, make, kept_in / f"seed-{seed}") for seed, make in zip(numbers, grounds, strict=True)]
    if asked.choose:
        choose(own[0], parts)
        return
    seeds = [rows_of(seed, parts) for seed in own]
    print("\n" + "\n".join(page(seeds)))
    if "widths" in parts:
        shortest = next(iter(seeds[0]["widths"]))
        ways = [mean(seed["widths"][shortest][way]["trained"] for seed in seeds) for way in ("with", "without")]
        print(f"losses ratio={ways[0] / max(ways[1], 1e-9):.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
