"""The one training loop."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mclip_kit.errors import DataError
from mclip_kit.triangle import Batch


@dataclass
class Loop:
    """All that the loop needs of a stage.

    Attributes:
        name: for the progress bar.
        triangle: prepared by the accelerator; a batch to named loss terms.
        optimizer: prepared by the accelerator.
        batches: epoch -> its batches of rows, over all processes; every epoch has as many.
        fetch: rows of this process -> fields of a Batch.
        rate: step -> learning rate.
        epochs: passes.
        per_epoch: steps of one.
        clip_norm: largest gradient norm, or None.
        seed: each step's draws (dropout, augmentation) depend on it and on the step's number alone.
    """

    name: str
    triangle: torch.nn.Module
    optimizer: Any
    batches: Callable[[int], list[np.ndarray]]
    fetch: Callable[[np.ndarray], dict[str, Tensor]]
    rate: Callable[[int], float]
    epochs: int
    per_epoch: int
    clip_norm: float | None
    seed: int

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return self.per_epoch * self.epochs


def train(accelerator: Accelerator, loop: Loop, start: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Take the steps from `start` on; after each, yield how many are taken and what the step measured."""
    rank, world = accelerator.process_index, accelerator.num_processes
    with tqdm(
        desc=loop.name,
        initial=start,
        total=loop.steps,
        unit="step",
        dynamic_ncols=True,
        disable=not accelerator.is_local_main_process,
    ) as bar:
        for step, rows in _rows(loop, start):
            began = time.perf_counter()
            torch.manual_seed(hash((loop.seed, step, rank)))
            batch = Batch(**loop.fetch(rows[rank::world])).to(accelerator.device)
            for group in loop.optimizer.param_groups:
                group["lr"] = loop.rate(step)
            loop.optimizer.zero_grad()
            terms = loop.triangle(batch)
            accelerator.backward(terms["loss"])
            if loop.clip_norm is not None:
                accelerator.clip_grad_norm_(loop.triangle.parameters(), loop.clip_norm)
            loop.optimizer.step()
            values = {name: float(term.detach()) for name, term in terms.items()}
            if not np.isfinite(values["loss"]):
                raise DataError(f"{loop.name}: the loss is {values['loss']} at step {step}; lower lr or set clip_norm")
            values |= {"lr": loop.rate(step), "pairs_per_s": len(rows) / (time.perf_counter() - began)}
            bar.update()
            bar.set_postfix_str(_postfix(values))
            yield step + 1, values


def _rows(loop: Loop, start: int) -> Iterator[tuple[int, np.ndarray]]:
    for epoch in range(start // loop.per_epoch, loop.epochs):
        for step, rows in enumerate(loop.batches(epoch), epoch * loop.per_epoch):
            if step >= start:
                yield step, rows


def _postfix(values: dict[str, float]) -> str:
    terms = {name: value for name, value in values.items() if name not in ("loss", "lr", "pairs_per_s")}
    shown = {"loss": values["loss"], **(terms if len(terms) > 1 else {})}
    return "  ".join([*(f"{k} {v:.4g}" for k, v in shown.items()), f"{values['pairs_per_s']:.0f} pairs/s"])


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that Ctrl-C fills, so that no step is cut in two; a second Ctrl-C ends at once."""
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
