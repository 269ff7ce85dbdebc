"""The one training loop."""

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mclip_kit.data.readers import read_ahead
from mclip_kit.progress import tqdm
from mclip_kit.tasks.base import Seed
from mclip_kit.tasks.stage_batches import StageBatches
from mclip_kit.train import fsdp

Gradients = Callable[[Accelerator, torch.nn.Module, Any, Seed], dict[str, Tensor]]
"""(accelerator, module, batch, seed) -> loss terms; leaves the gradients in the parameters."""


@dataclass
class Loop:
    """All that the loop needs of a stage.

    Attributes:
        name: for the progress bar.
        module: prepared by the accelerator; a batch to named loss terms.
        optimizer: prepared by the accelerator; the learning rate of a group is the rate times its `scale`.
        batches: their plan gives the rows of a step, over all processes; every epoch has as many steps.
        readers: processes that make batches ahead of the steps; 0: this one makes each in its step.
        rate: step -> learning rate.
        steps: of the whole stage.
        steps_per_epoch: steps of a pass over the rows.
        clip_norm: largest gradient norm, or None.
        seed: the random draws of a step (dropout, augmentation) depend on it and on the step's number alone.
        gradients: how a step computes them.
    """

    name: str
    module: torch.nn.Module
    optimizer: Any
    batches: StageBatches
    readers: int
    rate: Callable[[int], float]
    steps: int
    steps_per_epoch: int
    clip_norm: float | None
    seed: int
    gradients: Gradients


SAME_REQUEST = 1.0  # seconds
MEASURES = ("loss", "cosine", "matching")  # that a module may give beside its loss terms
Step = tuple[int, dict[str, float], np.ndarray, bool]
"""Number of steps taken, what the last one measured, its rows over all processes, and whether to stop after it."""


def train(accelerator: Accelerator, loop: Loop, start: int, asked: Sequence[int] = ()) -> Generator[Step]:
    """Take the steps from `start` on, and yield after each of them.

    A step whose loss or gradient is non-finite changes no weight; its value `skipped` is 1 then.

    Args:
        asked: not empty once this process is to stop (`stop_requests`); all processes then stop after the same step.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    bar = tqdm(
        desc=loop.name,
        initial=start,
        total=loop.steps,
        unit="step",
        dynamic_ncols=True,
        disable=not accelerator.is_local_main_process,
    )
    pin = accelerator.device.type == "cuda"
    # once, for a walk through all towers takes as long as a small stage's step; frozen weights have no gradient
    trained = [parameter for parameter in loop.module.parameters() if parameter.requires_grad]
    replicated = fsdp.replicated(loop.module)
    with bar, closing(read_ahead(partial(_read, loop, rank, world), _rows(loop, start), loop.readers, pin)) as steps:
        began = time.perf_counter()
        for (step, rows), (read, unreadable) in steps:
            loop.batches.note(unreadable)
            batch = read.to(accelerator.device)
            fetched = time.perf_counter()
            seed = partial(_seed, loop.seed, step, rank)
            seed(0)
            for group in loop.optimizer.param_groups:
                group["lr"] = loop.rate(step) * group.get("scale", 1.0)
            loop.optimizer.zero_grad()
            terms = loop.gradients(accelerator, loop.module, batch, seed)
            fsdp.average_gradients(accelerator, replicated)
            norm = fsdp.clip_gradients(accelerator, trained, loop.clip_norm)
            values = _over_processes(
                accelerator, terms | {"stop": torch.tensor(float(len(asked)), device=accelerator.device)}
            )
            stop = values.pop("stop") > 0
            finite = math.isfinite(norm) and math.isfinite(values["loss"])
            if finite or accelerator.scaler is not None:  # a scaler skips the step itself, and lowers its scale
                loop.optimizer.step()
            values |= {"lr": loop.rate(step), "grad_norm": norm, "skipped": float(not finite)}
            values |= _pace(len(rows), batch, world, began, fetched)
            bar.set_postfix_str(_postfix(values, [name for name in terms if name in values]), refresh=False)
            bar.update()
            yield step + 1, values, rows, stop
            began = time.perf_counter()


def _over_processes(accelerator: Accelerator, terms: dict[str, Tensor]) -> dict[str, float]:
    """Means of the loss terms over all processes."""
    means = accelerator.reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
    return dict(zip(terms, means.tolist(), strict=True))


def _read(loop: Loop, rank: int, world: int, work: tuple[int, np.ndarray]) -> tuple[Any, Sequence[int]]:
    """This process's part of the batch of a step, and pictures that could not be read."""
    step, rows = work
    _seed(loop.seed, step, rank, 0)
    return loop.batches.read(rows[rank::world])


def _seed(seed: int, step: int, rank: int, part: int) -> None:
    number = hash((seed, step, rank, part) if part else (seed, step, rank))
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:  # torch.manual_seed would note its stack for each kind of device that is not there
        torch.default_generator.manual_seed(number)


def _pace(rows: int, batch: Any, world: int, began: float, fetched: float) -> dict[str, float]:
    """Throughput of the step, share of its time that the data took, and peak memory so far."""
    took = time.perf_counter() - began
    tokens = world * batch.tokens
    pace = {"pairs_per_s": rows / took, "wait": (fetched - began) / took}
    if tokens:
        pace["tokens_per_s"] = tokens / took
    if torch.cuda.is_available():
        pace["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return pace


def _rows(loop: Loop, start: int) -> Iterator[tuple[int, np.ndarray]]:
    for epoch in range(start // loop.steps_per_epoch, -(-loop.steps // loop.steps_per_epoch)):
        first = max(start, epoch * loop.steps_per_epoch)
        for step, rows in enumerate(loop.batches.epoch(epoch, first - epoch * loop.steps_per_epoch), first):
            if step < loop.steps:
                yield step, rows


def _postfix(values: dict[str, float], terms: list[str]) -> str:
    """What the progress bar shows: the loss, its terms if there are several, the learning rate and the throughput."""
    parts = [name for name in terms if name not in MEASURES]
    shown = {"loss": values["loss"], **({name: values[name] for name in parts} if len(parts) > 1 else {})}
    pace = [f"{values['pairs_per_s']:.0f} pairs/s"]
    if "tokens_per_s" in values:
        pace.append(f"{values['tokens_per_s']:.0f} tokens/s")
    pace.append(f"data {values['wait']:.0%}")
    if "memory_gb" in values:
        pace.append(f"{values['memory_gb']:.1f} GB")
    return "  ".join([*(f"{k} {v:.4g}" for k, v in shown.items()), f"lr {values['lr']:.2g}", *pace])


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list of the signal that asked to stop: Ctrl-C, or SIGTERM, which clusters send before they kill.

    The step in progress is then finished. A second signal stops at once; one that comes within a second of the first
    is the same request, which torchrun passes on to processes that a terminal or a cluster has reached already.
    """
    asked: list[int] = []
    since = 0.0

    def remember(number: int, frame: Any) -> None:
        nonlocal since
        if not asked:
            since = time.monotonic()
            asked.append(number)
        elif time.monotonic() - since > SAME_REQUEST:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
