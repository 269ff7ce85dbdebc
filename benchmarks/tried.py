"""What was tried beside quickstart_trikd: hard negatives, two teachers, and distillation of tokens.

    python benchmarks/tried.py [--seeds 1,2,3] [--data data/emoji] [--encoder encoders/e5-small] [--smoke]
        [--teacher runs/results/seed-1/quickstart/model/clip] [--second runs/results/seed-2/quickstart/model/clip]

The ground is that of losses.py: cached features of the recipe quickstart_trikd, its steps, losses and rates. Seeds are
of the projector. Options are chosen with the first seed on the validation split: the mean R@1 of all languages.

    today             quickstart_trikd
    hard negatives    stage 2: a batch is made of groups of captions whose teacher texts are nearest to each other; the
                      groups are drawn again each epoch. The option is their size
    hard, by student  the same, with neighbours of the student's own embeddings, computed again each epoch
    mapped mean       targets are the mean of the teacher and of a second one, which ridge regression maps to the first
    second, relational  a relational loss to the second teacher's texts, in both stages; the option is its weight
    concatenated      targets and pictures of both teachers side by side: two image towers, and twice the width
    tokens            stage 1: the state of an English word in the student, mapped by the projector, is near the
                      state of its last token in the teacher; the option is the weight

`--second` may be missing: the rows of two teachers are left out then, with a line that says so. `--smoke` uses made-up
features and few steps. The last line has the best row on validation, as R@1 of all languages beyond today's.
"""

import argparse
from collections.abc import Callable
from copy import copy
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import losses
import torch
import torch.nn.functional as F
from losses import BATCH, CLIP_NORM, DECAY, IS, MSE, NAMES, TRIKD, TS, WARMUP, Ground, Student
from tables import Scores, head, kept, row, spread
from torch import Tensor, nn

from mclip_kit.config.edges import Edge
from mclip_kit.config.recipe import load
from mclip_kit.data.batching import pad
from mclip_kit.losses.distillation import cosine, relational
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.triangle_loss import Triangle, TriangleBatch
from mclip_kit.train.optim import build_optimizer, learning_rate
from mclip_kit.train.run import Run

RATES = (1e-3, 5e-4)  # of quickstart_trikd
TODAY: list[losses.Edges] = [{TS: MSE}, {IS: {"loss": "contrastive"}, TS: TRIKD}]
GOAL = 1.0

Order = Callable[[Student, TriangleBatch], Tensor]
Extra = Callable[[Student, Tensor], Tensor]


def shuffled(_: Student, rows: TriangleBatch) -> Tensor:
    """All rows in random order."""
    return torch.randperm(len(rows))


def train(student: Student, rows: TriangleBatch, stage: int, epochs: int, order: Order, extra: Extra | None) -> None:
    """Train the projector as losses.train does, with an order of rows for each epoch and a further loss."""
    named = {name: Edge.model_validate(edge) for name, edge in TODAY[stage].items()}
    triangle = Triangle(student, named, {name for name, _ in student.named_parameters()}).train()  # type: ignore[arg-type]
    optimizer = build_optimizer(triangle, "adamw", RATES[stage], DECAY, (0.9, 0.999), 1e-8)
    given = {f.name: getattr(rows, f.name) for f in fields(rows) if getattr(rows, f.name) is not None}
    per_epoch = max(1, len(rows) // BATCH)
    rate = learning_rate(RATES[stage], "cosine", min(WARMUP, per_epoch), epochs * per_epoch)
    for epoch in range(epochs):
        batches = order(student, rows)[: per_epoch * BATCH].view(per_epoch, -1)
        student.train()
        for step, own in enumerate(batches, epoch * per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            optimizer.zero_grad()
            loss = triangle(TriangleBatch(**{name: column[own] for name, column in given.items()}))["loss"]
            (loss if extra is None else loss + extra(student, own)).backward()
            nn.utils.clip_grad_norm_(triangle.parameters(), CLIP_NORM)
            optimizer.step()


def hard(size: int, by_student: bool, student: Student, rows: TriangleBatch) -> Tensor:
    """Rows in an order in which each `size` rows are near each other: a random row and its nearest unused rows."""
    with torch.no_grad():
        student.eval()
        near_NE = student.projector.head(rows.pooled_BH) if by_student else texts_of_pictures(rows)
    near_NE = F.normalize(near_NE, dim=-1)
    groups_N, unused_N = rows.groups_B, torch.ones(len(rows), dtype=torch.bool)
    nearest_NK = torch.cat([(part @ near_NE.T).topk(64).indices for part in near_NE.split(1024)])
    chunks = []
    for first in torch.randperm(len(rows)).tolist():
        if not unused_N[first]:
            continue
        other_K = nearest_NK[first][unused_N[nearest_NK[first]] & (groups_N[nearest_NK[first]] != groups_N[first])]
        chunk = torch.cat([torch.tensor([first]), other_K[: size - 1]])
        unused_N[chunk] = False
        chunks.append(chunk)
    return torch.cat([chunks[place] for place in torch.randperm(len(chunks)).tolist()])


def texts_of_pictures(rows: TriangleBatch) -> Tensor:
    """The teacher's English text of each row's group (N, E): rows in other languages have none of their own."""
    assert rows.has_teacher_B is not None
    assert rows.teacher_BE is not None
    _, numbers_N = rows.groups_B.unique(return_inverse=True)
    known_NE = torch.zeros(int(numbers_N.max()) + 1, rows.teacher_BE.shape[1])
    known_NE[numbers_N[rows.has_teacher_B]] = rows.teacher_BE[rows.has_teacher_B]
    return known_NE[numbers_N]


def both_stages(
    ground: Ground, seed: int, orders: tuple[Order, Order] = (shuffled, shuffled), extras: Any = (None, None)
) -> Student:
    """A projector after both stages."""
    torch.manual_seed(seed)
    student = Student(ground)
    for stage in (0, 1):
        torch.manual_seed(seed)
        train(student, ground.stages[stage], stage, ground.epochs[stage], orders[stage], extras[stage])
    return student


def mapped_mean(ground: Ground, second: Ground) -> Ground:
    """Targets: the mean of the first teacher and of the second one, mapped to the first by the texts of stage 1."""
    first_NE, other_NE = (F.normalize(own.stages[0].teacher_BE, dim=-1).double() for own in (ground, second))  # type: ignore[arg-type]
    square_EE = other_NE.T @ other_NE + 1e-3 * len(other_NE) / other_NE.shape[1] * torch.eye(other_NE.shape[1])
    map_EE = torch.linalg.solve(square_EE, other_NE.T @ first_NE).float()

    def targets(mine: TriangleBatch, other: TriangleBatch) -> TriangleBatch:
        sides = (
            F.normalize(mine.teacher_BE, dim=-1),
            F.normalize(  # type: ignore[arg-type]
                F.normalize(other.teacher_BE, dim=-1) @ map_EE,  # type: ignore[arg-type]
                dim=-1,
            ),
        )
        return replace(mine, teacher_BE=F.normalize(sides[0] + sides[1], dim=-1))

    new = copy(ground)
    new.stages = [targets(*pair) for pair in zip(ground.stages, second.stages, strict=True)]
    return new


def concatenated(ground: Ground, second: Ground) -> Ground:
    """Texts and pictures of both teachers side by side, each of length one."""

    def beside(*sides: Tensor | None) -> Tensor | None:
        given = [F.normalize(side, dim=-1) for side in sides if side is not None]
        return torch.cat(given, -1) if given else None

    new = copy(ground)
    new.stages = [
        replace(a, image_BE=beside(a.image_BE, b.image_BE), teacher_BE=beside(a.teacher_BE, b.teacher_BE))
        for a, b in zip(ground.stages, second.stages, strict=True)
    ]
    new.splits = {}
    for name, split in ground.splits.items():
        own = [torch.from_numpy(part.splits[name].image_GD) for part in (ground, second)]
        new.splits[name] = replace(split, image_GD=beside(*own).numpy())  # type: ignore[union-attr]
    new.widths = ground.widths[0], ground.widths[1] + second.widths[1]
    return new


def follow(ground: Ground, second: Ground, weight: float) -> list[Extra]:
    """A relational loss to the second teacher's texts, for both stages."""

    def extra(stage: int, student: Student, own: Tensor) -> Tensor:
        rows, other = ground.stages[stage], second.stages[stage]
        keep_B = None if rows.has_teacher_B is None else rows.has_teacher_B[own]
        embedding_BD = student.projector.head(rows.pooled_BH[own])  # type: ignore[index]
        return weight * relational(embedding_BD, other.teacher_BE[own], keep_B)  # type: ignore[index]

    return [partial(extra, 0), partial(extra, 1)]


class Words:
    """States of the words of English texts in both towers, where both tokenizers split a text at its words.

    Attributes:
        student_NH, teacher_NE: a word's mean state in the student; the state of its last token in the teacher, in the
            teacher's space.
        left_out: texts whose tokens do not align.
    """

    def __init__(self, model: MultilingualClip, texts: list[str]) -> None:
        self.student_NH, self.teacher_NE, self.left_out = [], [], 0  # type: ignore[var-annotated]
        for start in range(0, len(texts), 256):
            self._add(model, texts[start : start + 256])
        self.student_NH, self.teacher_NE = torch.cat(self.student_NH), torch.cat(self.teacher_NE)

    @torch.no_grad()
    def _add(self, model: MultilingualClip, texts: list[str]) -> None:
        clip = model.clip[0]
        tokens, ids_BT = model.student_tokens(texts), clip.tokenize(texts)
        ids, mask = pad(tokens, model.encoder.tokenizer.pad)
        states_BTH = model.encoder(ids, mask)
        caught: list[Tensor] = []
        hook = clip.model.text.ln_final.register_forward_hook(lambda _, given, out: caught.append(out))
        clip.model.text(ids_BT)
        hook.remove()
        teacher_BTE = caught[0] @ clip.model.text.text_projection
        for place, text in enumerate(texts):
            words = text.split()
            mine = [len(part) - 2 for part in model.student_tokens(words)]
            theirs = [int((part > 0).sum()) - 2 for part in clip.tokenize(words)]
            if sum(mine) != len(tokens[place]) - 2 or sum(theirs) != int((ids_BT[place] > 0).sum()) - 2:
                self.left_out += 1
                continue
            end, last = 1, 0
            for size, count in zip(mine, theirs, strict=True):
                self.student_NH.append(states_BTH[place, end : end + size].mean(0, keepdim=True))
                end, last = end + size, last + count
                self.teacher_NE.append(teacher_BTE[place, last : last + 1])

    def extra(self, weight: float, student: Student, own: Tensor) -> Tensor:
        """The loss of as many random words as the batch has rows."""
        words_B = torch.randint(len(self.student_NH), (len(own),))
        return weight * cosine(student.projector.head(self.student_NH[words_B]), self.teacher_NE[words_B])  # type: ignore[call-overload]


def rows_of(ground: Ground, second: Ground | None, words: Any) -> dict[str, dict[str, Callable[[int], Any]]]:
    """Row -> option -> what trains its projector with a seed, and gives it with its ground."""

    def plan(own: Ground, **given: Any) -> Callable[[int], Any]:
        return lambda seed: (both_stages(own, seed, **given), own)

    rows = {"today": {"": plan(ground)}}
    for name, by_student in (("hard negatives", False), ("hard, by student", True)):
        orders = {str(size): (shuffled, partial(hard, size, by_student)) for size in (2, 4, 8)}
        rows[name] = {size: plan(ground, orders=order) for size, order in orders.items()}
    if second is not None:
        rows["mapped mean"] = {"": plan(mapped_mean(ground, second))}
        rows["second, relational"] = {str(w): plan(ground, extras=follow(ground, second, w)) for w in (0.1, 1.0)}
        rows["concatenated"] = {"": plan(concatenated(ground, second))}
    if words is not None:
        given = {str(weight): (partial(words.extra, weight), None) for weight in (0.01, 0.1)}
        rows["tokens"] = {weight: plan(ground, extras=extras) for weight, extras in given.items()}
    return rows


def measured(rows: dict[str, dict[str, Callable[[int], Any]]], seeds: list[int], folder: Path | None) -> list[Scores]:
    """The scores of each seed: row -> option, valid, test. The first seed chooses the options."""
    found: list[Scores] = []
    for seed in seeds:
        scores: Scores = {}
        for name, options in rows.items():
            tried = options if not found else {found[0][name]["option"]: options[found[0][name]["option"]]}
            make = partial(best_option, tried, seed)
            scores[name] = make() if folder is None else kept(folder / f"seed-{seed}" / name.replace(" ", "-"), make)
            print(f"seed {seed}  {name} {scores[name]}", flush=True)
        found.append(scores)
    return found


def best_option(options: dict[str, Callable[[int], Any]], seed: int) -> Scores:
    """The option that is best on validation: its scores."""
    found = []
    for option, make in options.items():
        student, ground = make(seed)
        valid, test = (losses.scores(student, ground, split) for split in ("valid", "test"))
        found.append({"option": option, "valid": valid, "test": test})
    return max(found, key=lambda scores: scores["valid"]["all"])


def read(asked: argparse.Namespace) -> tuple[Ground, Ground | None, Any]:
    """The ground of the first teacher, that of the second one, and the words of English rows."""
    ground, second = losses.read_ground(1, asked), None
    if Path(asked.second).is_dir():
        second = losses.read_ground(1, argparse.Namespace(**{**vars(asked), "teacher": asked.second}))
    else:
        print(f"{asked.second}: missing, so the rows of two teachers are left out")
    changes = [f"teacher.model=local-dir:{asked.teacher}", f"encoder=hf:{asked.encoder}", f"data.captions={asked.data}"]
    run = Run(load("quickstart_trikd", [*changes, f"data.bitext={asked.data}/bitext"]), Path(asked.out) / "none")
    texts = sorted({text for text in next(run.tasks()).rows.teacher_texts if text})
    words = Words(run.model, texts)
    print(f"tokens: {len(words.student_NH):,} words; {words.left_out} of {len(texts):,} texts do not align")
    return ground, second, words


def made_up(seed: int) -> tuple[Ground, Ground, Any]:
    """The ground of losses.made_up with two teachers, and words that are its rows."""
    ground, second = losses.made_up(seed), losses.made_up(seed + 1)
    words: Any = Words.__new__(Words)
    words.student_NH, words.teacher_NE = ground.stages[0].pooled_BH, ground.stages[0].teacher_BE
    return ground, second, words


def main() -> None:
    """Train, print the table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--encoder", default="encoders/e5-small")
    parser.add_argument("--teacher", default="runs/results/seed-1/quickstart/model/clip")
    parser.add_argument("--second", default="runs/results/seed-2/quickstart/model/clip")
    parser.add_argument("--cache", default="runs/features")
    parser.add_argument("--out", default="runs/tried")
    parser.add_argument("--epochs", default="15,30", type=lambda text: [int(count) for count in text.split(",")])
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    numbers = [1] if asked.smoke else [int(seed) for seed in asked.seeds.split(",")]
    rows = rows_of(*(made_up(1) if asked.smoke else read(asked)))
    seeds = measured(rows, numbers, None if asked.smoke else Path(asked.out))
    print("\n" + "\n".join(head("T2I R@1", "option", "all, valid", *NAMES)))
    for name in rows:
        cells = [spread([seed[name]["test"][label] for seed in seeds]) for label in NAMES]
        valid = spread([seed[name]["valid"]["all"] for seed in seeds])
        print(row(name, seeds[0][name]["option"], valid, *cells))
    means = {name: mean(seed[name]["valid"]["all"] for seed in seeds) for name in rows}
    best = max((name for name in rows if name != "today"), key=lambda name: means[name])
    print(f"best on validation: {best}")
    print(f"tried ratio={means[best] / max(means['today'], 1e-9):.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
