"""Sentences per second of teacher learning (MSE, all weights trained): ours against the bare steps on the same batches.

    python benchmarks/distill_vs_bare.py [--source MULTI30K] [--rounds 5] [--steps 6] [--threads 2] [--smoke]

Ours is a stage of a recipe, with all that a run does in a step: reading the rows, the learning rate, the loss and its
health, the norm of gradients, the logged values. Bare is forward, loss, backward, clipping and the step of the same
optimiser on the same batches, which were read before. The student has the sizes of XLM-R base with 250,000 pieces and
random weights, mean pooling and a linear layer; AdamW, gradients clipped at 1, float32; 64 English and German pairs of
Multi30K (128 sentences) a step. Without Multi30K the text is random; `--smoke` also uses small towers. A round is
measured from the end of its first step to the end of its last step. The last line has our sentences per second divided
by the bare ones.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from prefetch import prepare
from prepare import MULTI30K, text_of
from side_by_side import alternate, last_line, ratio, seconds, spread

from mclip_kit.config.recipe import Recipe
from mclip_kit.train.loop import Loop, train
from mclip_kit.train.run import Run

GOAL, CLOSE = 0.9, 1e-5
PAIRS, MAX_TOKENS, LR = 64, 77, 2e-5
LINES = 8192  # of each language; more lines would only make the teacher run longer
BASE = {"layers": 12, "width": 768, "heads": 12, "ffn": 3072}
SMALL = {"layers": 1, "width": 32, "heads": 2, "ffn": 64}
SMALL_TEACHER = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {"width": 32, "heads": 1, "layers": 1},
}


def recipe(bitext: Path, small: bool) -> Recipe:
    """Ours: one stage of teacher learning."""
    stage = {
        "name": "teacher_learning",
        "train": ["student"],
        "edges": {"teacher_text-student_text": {"loss": "mse"}},
        "data": "bitext",
        "epochs": 1000,
        "batch_size": 2 * PAIRS,
        "max_tokens": MAX_TOKENS,
        "lr": LR,
        "clip_norm": 1.0,
    }
    tree = {
        "about": "teacher learning",
        "teacher": {"model": SMALL_TEACHER if small else "ViT-B-32", "weights": "random"},
        "encoder": {**(SMALL if small else BASE), "dropout": 0.1, "positions": 512},
        "projector": {"kind": "linear", "pool": "mean"},
        "data": {"bitext": str(bitext)},
        "precision": "fp32",
        "stages": [stage],
    }
    return Recipe.model_validate(tree)


def started(folder: Path, source: Path, smoke: bool) -> tuple[Run, Loop]:
    """Ours, before its first step: the text is prepared, and the teacher has run."""
    model, _ = text_of(source, folder, smoke, 400 if smoke else LINES)
    for language in ("en", "de"):
        path = folder / f"train.{language}"
        path.write_text("\n".join(read(path)[:LINES]) + "\n", encoding="utf-8")
    sides = [f"{language}={folder / f'train.{language}'}" for language in ("en", "de")]
    prepare("--bitext", *sides, "--spm", model, "--out", folder / "data")
    mine = Run(recipe(folder / "data" / "bitext", smoke), folder / "run")
    print(f"the teacher's embeddings, once: {seconds(mine.extract):.1f} s, not counted", flush=True)
    task = next(mine.tasks())
    return mine, mine.loop(0, task, task.module())


def read(path: Path) -> list[str]:
    """Lines of a text file."""
    return path.read_text(encoding="utf-8").splitlines()


def pace(times: list[float]) -> float:
    """Sentences per second between the ends of the first step and of the last."""
    return 2 * PAIRS * float(1 / np.diff(times).mean())


def bare_loss(loop: Loop, batch: Any) -> torch.Tensor:
    """The mean squared error of the student's embeddings and the teacher's."""
    model = loop.module.model
    student_BD = model.projector(model.encoder(batch.ids_BT, batch.mask_BT), batch.mask_BT)
    return F.mse_loss(student_BD, batch.teacher_BE)


def check(loop: Loop) -> None:
    """Stop unless both have the same loss."""
    rows = next(iter(loop.batches.epoch(0, 0)))
    batch = loop.batches.read(rows[:8])[0]
    with torch.no_grad():
        loop.module.eval()
        ours, same = (float(loss) for loss in (loop.module(batch)["loss"], bare_loss(loop, batch)))
        loop.module.train()
    if not abs(ours - same) <= CLOSE * same:
        sys.exit(f"distill_vs_bare: the losses are {ours} and {same}")


def bare(loop: Loop, batches: list[Any]) -> list[float]:
    """Train on batches that are in memory; the times at which each step ended."""
    optimizer, times = loop.optimizer.optimizer, []
    for batch in batches:
        optimizer.zero_grad()
        bare_loss(loop, batch).backward()
        torch.nn.utils.clip_grad_norm_(loop.module.parameters(), loop.clip_norm)
        optimizer.step()
        times.append(time.perf_counter())
    return times


def main() -> None:
    """Measure both in turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=MULTI30K, help="Multi30K, as its authors publish it.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="Steps per round; the first is not counted.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    with tempfile.TemporaryDirectory() as temporary:
        mine, loop = started(Path(temporary), asked.source, asked.smoke)
        check(loop)
        steps, rows = train(mine.accelerator, loop, 0), []

        def ours() -> float:
            rows.clear()
            times = []
            for _, (_, _, own, _) in zip(range(asked.steps), steps, strict=False):
                times.append(time.perf_counter())
                rows.append(own)
            return pace(times)

        def same() -> float:
            batches = [loop.batches.read(own)[0] for own in rows]
            return pace(bare(loop, batches))

        figures = alternate({"ours": ours, "bare": same}, 0 if asked.smoke else asked.rounds)
    for name, values in figures.items():
        print(f"{name}: {spread(values)} sentences/s")
    last_line("distill_vs_bare", ratio(figures, "ours", "bare"), GOAL)


if __name__ == "__main__":
    main()
