"""Seconds of a step that decodes its pictures: with reader processes (`workers`) against none.

    python benchmarks/prefetch.py [--batch 128] [--steps 6] [--readers 2] [--rounds 5] [--threads 1] [--smoke]

A CLIP with a small image tower learns from JPEG files of 640 x 480, which are made first: smoothed noise, each with a
caption. A stage that trains the image tower decodes its pictures in every step, and nothing of it is in the cache.
Both sides are the loop that trains, in turns on the same model; the first steps, in which readers fill their store, are
not counted.

The share of a step that is decoding bounds the gain: 1 / (1 - share) where the readers have cores of their own. On two
cores, which readers and training share, it is less than 2. The last line has the seconds without readers divided by
those with them (goal 1.3, on two cores); the line before, the share of a step with readers in which it waits for its
batch (at most 0.05).
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from click.testing import CliRunner
from embed_images import pictures
from prepare import made_up
from side_by_side import alternate, last_line, ratio, spread

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe
from mclip_kit.train.loop import Loop, train
from mclip_kit.train.run import Run

GOAL, WAIT = 1.3, 0.05
WORDS = ["red", "green", "blue", "small", "large", "round", "long", "old", "new", "soft", "hard", "wide"]


def prepare(*words: object) -> None:
    """`mclip-kit prepare WORDS`"""
    done = CliRunner().invoke(cli, ["prepare", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def prepared(folder: Path, captions: Sequence[str]) -> dict[str, str]:
    """Picture files with a caption each, and parallel texts, from which the encoder has its vocabulary."""
    spm, source = made_up(folder, 200), folder / "pictures"
    for path, caption in zip(pictures(source, len(captions)), captions, strict=True):
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    ours = ("--spm", spm, "--set", "splits.valid=0", "--set", "splits.test=0", "--out")
    prepare("--folder", source, *ours, folder / "data")
    prepare("--bitext", f"en={folder}/train.en", f"de={folder}/train.de", *ours, folder / "texts")
    return {"captions": str(folder / "data"), "bitext": str(folder / "texts" / "bitext")}


def recipe(data: dict[str, str], batch: int, size: int) -> Recipe:
    """A CLIP that is trained on pictures and English captions."""
    vision = {"image_size": size, "patch_size": size // 7, "width": 128, "layers": 2, "head_width": 64}
    text = {"context_length": 16, "width": 64, "heads": 2, "layers": 1}
    tree: dict[str, Any] = {
        "about": "pictures that are decoded in every step",
        "teacher": {"model": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}, "weights": "train"},
        "encoder": {"layers": 1, "width": 16, "heads": 2, "ffn": 16, "positions": 32, "weights": "random"},
        "projector": {"kind": "linear", "pool": "cls"},
        "data": data,
        "precision": "fp32",
        "stages": [
            {
                "name": "teacher",
                "train": ["image", "teacher_text"],
                "edges": {"image-teacher_text": {"loss": "contrastive"}},
                "data": "captions",
                "languages": ["en"],
                "epochs": 10**6,
                "batch_size": batch,
                "lr": 1e-4,
            }
        ],
    }
    return Recipe.model_validate(tree)


def seconds(run: Run, loop: Loop, steps: int, skipped: int) -> tuple[float, float]:
    """Seconds of a step, and the share of it in which the loop waits for its batch; means of `steps` steps."""
    with closing(train(run.accelerator, loop, 0)) as taken:
        values = [step[1] for step in islice(taken, skipped + steps)][skipped:]
    took = [loop_rows / value["pairs_per_s"] for value in values for loop_rows in [run.recipe.stages[0].batch_size]]
    waited = [second * value["wait"] for second, value in zip(took, values, strict=True)]
    return mean(took), sum(waited) / sum(took)


def main() -> None:
    """Make the pictures, measure in turns, print, and end with the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the process that trains")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    batch, steps, rounds = (8, 2, 1) if asked.smoke else (asked.batch, asked.steps, asked.rounds)
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    with tempfile.TemporaryDirectory() as temporary:
        numbers = range(3 * batch)
        captions = [" ".join(WORDS[number // 12**place % 12] for place in range(4)) for number in numbers]
        data = prepared(Path(temporary), captions)
        run = Run(recipe(data, batch, 56 if asked.smoke else 224), Path(temporary) / "run")
        task = next(run.tasks())
        loop = run.loop(0, task, task.module())
        shares: dict[int, list[float]] = {0: [], asked.readers: []}

        def measure(readers: int) -> float:
            took, share = seconds(run, replace(loop, readers=readers), steps, 1 + 2 * readers)
            shares[readers].append(share)
            return took

        figures = alternate({f"{number} readers": lambda number=number: measure(number) for number in shares}, rounds)
    counted = {number: values[-len(figures[f"{number} readers"]) :] for number, values in shares.items()}
    for number, name in zip(counted, figures, strict=True):
        print(
            f"{name}: {spread(figures[name])} s a step of {batch} pictures; waiting for its batch takes "
            f"{spread([100 * share for share in counted[number]])} % of it"
        )
    gains = ratio(figures, "0 readers", f"{asked.readers} readers")
    print(f"with readers {spread(gains)} times as fast")
    last_line("prefetch_wait", counted[asked.readers], WAIT, "lower")
    last_line("prefetch", gains, GOAL)


if __name__ == "__main__":
    main()
