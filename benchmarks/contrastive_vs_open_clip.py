"""Pairs per second of a contrastive stage, one tower locked or both trained: ours against open_clip's training loop.

    python benchmarks/contrastive_vs_open_clip.py [--batch 64] [--steps 4] [--rounds 5] [--readers 2] [--threads 2]
                                                  [--model ViT-B-32] [--smoke]

Both train the same towers from the same random weights on the same batches: JPEG files of 640 x 480 (smoothed noise)
with English captions of 13 words, decoded in every step by two reader processes, pixels as for evaluation; AdamW
without decay of biases and norms, gradients clipped at 1, float32, a learned temperature. The peer is
`open_clip_train.train.train_one_epoch` with open_clip's ClipLoss, its CsvDataset behind a DataLoader, and the optimiser
of its command line. Ours is a stage of a recipe: its texts end after the longest of a batch, where the peer's have 77
positions.

- locked: the image tower is frozen, as in AltCLIP's contrastive stage, by `lock_image_tower` for the peer, which runs
  it in every step. Ours has run it once; the time of that is printed, and counted for neither side
- both towers are trained. The image tower, the same work for both, bounds the ratio

The losses of the first batch must agree before anything is measured. A round starts the loader again and is measured
from the end of its first step to the end of its last step. The last line has our pairs per second divided by the
peer's, both towers trained; the line before, with the image tower locked. `--smoke` takes small towers.
"""

import argparse
import logging
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip_train.data import CsvDataset, DataInfo
from open_clip_train.train import train_one_epoch
from prefetch import prepared
from side_by_side import alternate, compare, last_line, ratio, seconds
from torch.utils.data import DataLoader
from trimmed_text import made

from mclip_kit.config.recipe import Recipe
from mclip_kit.tasks.triangle import TriangleTask
from mclip_kit.train.loop import Loop, train
from mclip_kit.train.run import Run

GOAL, LOCKED_GOAL, CLOSE, LOCKED_CLOSE = 1.5, 3.0, 1e-4, 1e-3
LR, DECAY, BETAS, EPS, CLIP_NORM = 1e-4, 0.2, (0.9, 0.98), 1e-6, 1.0
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
}


def recipe(data: dict[str, str], model: str | dict[str, Any], batch: int, locked: bool) -> Recipe:
    """Ours: a CLIP that is trained on pictures and English captions, or its text tower alone."""
    stage = {
        "name": "teacher",
        "train": ["teacher_text"] if locked else ["image", "teacher_text"],
        "edges": {"image-teacher_text": {"loss": "contrastive", "temperature": 0.07, "learned": True}},
        "data": "captions",
        "languages": ["en"],
        "epochs": 10**6,
        "batch_size": batch,
        "lr": LR,
        "weight_decay": DECAY,
        "betas": BETAS,
        "eps": EPS,
        "clip_norm": CLIP_NORM,
    }
    tree: dict[str, Any] = {
        "about": "a CLIP that learns",
        "teacher": {"model": model, "weights": "train"},
        "encoder": {"layers": 1, "width": 16, "heads": 2, "ffn": 16, "positions": 32, "weights": "random"},
        "projector": {"kind": "linear", "pool": "cls"},
        "data": data,
        "precision": "fp32",
        "stages": [stage],
    }
    return Recipe.model_validate(tree)


class Peer:
    """open_clip's own training.

    Args:
        task: ours, for the same weights, rows and pixels.
        batches: rows of each step.
        readers: worker processes of the DataLoader.
        folder: to write its table of pictures and captions into.
        locked: the image tower is not trained.
    """

    def __init__(self, task: TriangleTask, batches: list[np.ndarray], readers: int, folder: Path, locked: bool) -> None:
        clip = task.context.model.clip[0]
        config = {name: value for name, value in clip.config.items() if name != "custom_text"}
        self.model = open_clip.CustomTextCLIP(**config, output_dict=True)
        self.model.load_state_dict(clip.model.state_dict())
        with torch.no_grad():
            self.model.logit_scale.fill_(np.log(1 / 0.07))
        if locked:
            self.model.lock_image_tower()
        table, rows, captions = folder / "peer.csv", task.rows, task.context.captions
        assert captions is not None
        files = [captions.files[image] for image in rows.images_N.tolist()]
        lines = [f"{file}\t{text}" for file, text in zip(files, rows.teacher_texts, strict=True)]
        table.write_text("\n".join(["filepath\ttitle", *lines]) + "\n", encoding="utf-8")
        size = clip.preprocess["size"]
        data = CsvDataset(
            str(table), open_clip.image_transform(size, is_train=False), "filepath", "title", tokenizer=clip.tokenizer
        )
        loader: Any = DataLoader(data, batch_sampler=[own.tolist() for own in batches], num_workers=readers)
        loader.num_samples, loader.num_batches = sum(map(len, batches)), len(batches)
        self.data = {"train": DataInfo(loader)}
        self.loss = open_clip.ClipLoss()
        self.optimizer, self.times = self._optimizer(), list[float]()
        self.optimizer.register_step_post_hook(lambda *_: self.times.append(time.perf_counter()))
        self.arguments = Namespace(
            **{"device": "cpu", "precision": "fp32", "distill": False, "accum_freq": 1, "skip_scheduler": True},
            **{"grad_clip_norm": CLIP_NORM, "rank": 0, "local_rank": 0, "log_local": False, "log_every_n_steps": 1},
            **{"batch_size": len(batches[0]), "world_size": 1, "wandb": False, "distributed": False},
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        """As `open_clip_train.main` builds it."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name]
        known = {id(p) for p in plain}
        rest = [p for _, p in named if id(p) not in known]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": DECAY}]
        return torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)

    def epoch(self) -> list[float]:
        """Train on all batches; the times at which each step ended."""
        self.times.clear()
        train_one_epoch(self.model, self.data, self.loss, 0, self.optimizer, None, None, None, self.arguments)
        return self.times


def check(task: TriangleTask, module: torch.nn.Module, rows: np.ndarray, peer: Peer, close: float) -> None:
    """Stop unless both have the same loss on some rows."""
    batch = task.batches.read(rows)[0]
    images, texts = next(iter(peer.data["train"].dataloader))
    with torch.no_grad():
        ours = float(module(batch)["loss"])
        theirs = float(peer.loss(**peer.model(images, texts)))
    print(f"loss of the first batch: {ours:.5f} and {theirs:.5f}", flush=True)
    if not abs(ours - theirs) <= close * theirs:
        sys.exit("contrastive_vs_open_clip: the losses differ")


def our_times(run: Run, loop: Loop, steps: int) -> list[float]:
    """The times at which each of some steps ended."""
    with closing(train(run.accelerator, loop, 0)) as taken:
        return [time.perf_counter() for _ in islice(taken, steps)]


def measured(asked: Namespace, locked: bool) -> list[float]:
    """Check, measure in turns and print; our pairs per second divided by the peer's, round by round."""
    batch, steps, readers = (8, 3, 0) if asked.smoke else (asked.batch, asked.steps, asked.readers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepared(folder, made(batch * (steps + 1)))
        run = Run(recipe(data, SMALL if asked.smoke else asked.model, batch, locked), folder / "run")
        if locked:
            pace = batch * (steps + 1) / seconds(run.extract)
            print(f"the image tower is locked; it has seen each picture once, {pace:.1f} pictures/s, not counted")
        task: Any = next(run.tasks())
        module = task.module()
        loop = replace(run.loop(0, task, module), readers=readers)
        batches = list(islice(loop.batches.epoch(0, 0), steps))
        peer = Peer(task, batches, readers, folder, locked)
        check(task, module, batches[0], peer, LOCKED_CLOSE if locked else CLOSE)  # kept features are in fp16

        def rate(times: Callable[[], list[float]]) -> Callable[[], float]:
            return lambda: batch / float(np.diff(times()).mean())

        variants = {"ours": rate(lambda: our_times(run, loop, steps)), "open_clip": rate(peer.epoch)}
        rates = alternate(variants, 0 if asked.smoke else asked.rounds)
    compare(rates, "pairs")
    return ratio(rates, "ours", "open_clip")


def main() -> None:
    """Measure with the image tower locked and trained, and end with the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="Steps per round; the first is not counted.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    logging.disable(logging.INFO)
    last_line("contrastive_vs_open_clip_locked", measured(asked, locked=True), LOCKED_GOAL)
    last_line("contrastive_vs_open_clip", measured(asked, locked=False), GOAL)


if __name__ == "__main__":
    main()
