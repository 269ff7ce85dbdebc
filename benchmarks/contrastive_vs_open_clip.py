"""Pairs per second of a contrastive stage that trains a CLIP: ours against open_clip's own training loop.

    python benchmarks/contrastive_vs_open_clip.py [--batch 64] [--steps 4] [--rounds 5] [--readers 2] [--threads 2]
                                                  [--model ViT-B-32] [--smoke]

Both train the same towers from the same random weights on the same batches: JPEG files of 640 x 480 (smoothed noise)
with English captions of 13 words, decoded in every step by two reader processes, pixels as for evaluation; AdamW
without decay of biases and norms, gradients clipped at 1, float32, a learned temperature. The peer is
`open_clip_train.train.train_one_epoch` with open_clip's ClipLoss, its CsvDataset behind a DataLoader, and the optimiser
of its command line. Ours is a stage of a recipe: its texts end after the longest of a batch, where the peer's have 77
positions.

The losses of the first batch must agree before anything is measured. A round starts the loader again and is measured
from the end of its first step to the end of its last step. The last line has our pairs per second divided by the
peer's. `--smoke` takes small towers.
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
from side_by_side import alternate, compare, last_line, ratio
from torch.utils.data import DataLoader
from trimmed_text import made

from mclip_kit.config.recipe import Recipe
from mclip_kit.tasks.triangle import TriangleTask
from mclip_kit.train.loop import Loop, train
from mclip_kit.train.run import Run

GOAL, CLOSE = 1.5, 1e-4
LR, DECAY, BETAS, EPS, CLIP_NORM = 1e-4, 0.2, (0.9, 0.98), 1e-6, 1.0
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
}


def recipe(data: dict[str, str], model: str | dict[str, Any], batch: int) -> Recipe:
    """Ours: a CLIP that is trained on pictures and English captions."""
    stage = {
        "name": "teacher",
        "train": ["image", "teacher_text"],
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
    """

    def __init__(self, task: TriangleTask, batches: list[np.ndarray], readers: int, folder: Path) -> None:
        clip = task.context.model.clip[0]
        config = {name: value for name, value in clip.config.items() if name != "custom_text"}
        self.model = open_clip.CustomTextCLIP(**config, output_dict=True)
        self.model.load_state_dict(clip.model.state_dict())
        with torch.no_grad():
            self.model.logit_scale.fill_(np.log(1 / 0.07))
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
        named = list(self.model.named_parameters())
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


def check(task: TriangleTask, module: torch.nn.Module, rows: np.ndarray, peer: Peer) -> None:
    """Stop unless both have the same loss on some rows."""
    batch = task.batches.read(rows)[0]
    images, texts = next(iter(peer.data["train"].dataloader))
    with torch.no_grad():
        ours = float(module(batch)["loss"])
        theirs = float(peer.loss(**peer.model(images, texts)))
    print(f"loss of the first batch: {ours:.5f} and {theirs:.5f}", flush=True)
    if not abs(ours - theirs) <= CLOSE * theirs:
        sys.exit("contrastive_vs_open_clip: the losses differ")


def our_times(run: Run, loop: Loop, steps: int) -> list[float]:
    """The times at which each of some steps ended."""
    with closing(train(run.accelerator, loop, 0)) as taken:
        return [time.perf_counter() for _ in islice(taken, steps)]


def main() -> None:
    """Check, measure in turns, print, and end with the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="Steps per round; the first is not counted.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    batch, steps, readers = (8, 3, 0) if asked.smoke else (asked.batch, asked.steps, asked.readers)
    torch.set_num_threads(1 if asked.smoke else asked.threads)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = prepared(folder, made(batch * (steps + 1)))
        run = Run(recipe(data, SMALL if asked.smoke else asked.model, batch), folder / "run")
        task: Any = next(run.tasks())
        module = task.module()
        loop = replace(run.loop(0, task, module), readers=readers)
        batches = list(islice(loop.batches.epoch(0, 0), steps))
        peer = Peer(task, batches, readers, folder)
        check(task, module, batches[0], peer)

        def pace(times: Callable[[], list[float]]) -> Callable[[], float]:
            return lambda: batch / float(np.diff(times()).mean())

        variants = {"ours": pace(lambda: our_times(run, loop, steps)), "open_clip": pace(peer.epoch)}
        rates = alternate(variants, 0 if asked.smoke else asked.rounds)
    compare(rates, "pairs")
    last_line("contrastive_vs_open_clip", ratio(rates, "ours", "open_clip"), GOAL)


if __name__ == "__main__":
    main()
