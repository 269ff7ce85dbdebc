"""The one training loop."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from mclip_kit.errors import DataError
from mclip_kit.tasks import grad_cache
from mclip_kit.train.fsdp import whole


@dataclass
class Loop:
    """All that the loop needs of a stage.

    Attributes:
        name: for the progress bar.
        objective: prepared by the accelerator; a batch to named loss terms.
        optimizer: prepared by the accelerator; each group learns at the rate times its `scale`.
        batches: epoch -> its batches of rows, over all processes; every epoch has as many.
        fetch: rows of this process -> a batch.
        rate: step -> learning rate.
        steps: of the whole stage.
        per_epoch: steps of a pass over the rows.
        clip_norm: largest gradient norm, or None.
        seed: each step's draws (dropout, augmentation) depend on it and on the step's number alone.
        gradients: (accelerator, objective, batch, seed) -> loss terms; leaves gradients in the parameters.
        max_nonfinite: steps in a row that may be skipped because loss or gradient is no finite number.
        skipped: what becomes of (step, rows) of such a step, in the main process.
    """

    name: str
    objective: torch.nn.Module
    optimizer: Any
    batches: Callable[[int], list[np.ndarray]]
    fetch: Callable[[np.ndarray], Any]
    rate: Callable[[int], float]
    steps: int
    per_epoch: int
    clip_norm: float | None
    seed: int
    gradients: Callable[..., dict[str, Tensor]] = grad_cache.whole
    max_nonfinite: int = 1
    skipped: Callable[[int, np.ndarray], None] = lambda step, rows: None


def train(accelerator: Accelerator, loop: Loop, start: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Take the steps from `start` on; after each, yield how many are taken and what the step measured."""
    rank, world = accelerator.process_index, accelerator.num_processes
    bad = 0
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
            seed = partial(_seed, loop.seed, step, rank)
            seed(0)
            batch = loop.fetch(rows[rank::world]).to(accelerator.device)
            fetched = time.perf_counter()
            for group in loop.optimizer.param_groups:
                group["lr"] = loop.rate(step) * group.get("scale", 1.0)
            loop.optimizer.zero_grad()
            terms = loop.gradients(accelerator, loop.objective, batch, seed)
            norm = float(whole(accelerator.clip_grad_norm_(loop.objective.parameters(), loop.clip_norm or math.inf)))
            values = _over_processes(accelerator, terms)
            finite = math.isfinite(norm) and math.isfinite(values["loss"])
            if finite or accelerator.scaler is not None:  # a scaler skips the step itself, and learns from it
                loop.optimizer.step()
            bad = 0 if finite else bad + 1
            values |= {"lr": loop.rate(step), "grad_norm": norm, "skipped": float(not finite)}
            if not finite:
                if accelerator.is_main_process:
                    loop.skipped(step, rows)
                if bad >= loop.max_nonfinite:
                    raise DataError(_hopeless(loop, step, values, bad))
            values |= _pace(len(rows), batch, world, began, fetched)
            bar.update()
            bar.set_postfix_str(_postfix(values))
            yield step + 1, values


def _over_processes(accelerator: Accelerator, terms: dict[str, Tensor]) -> dict[str, float]:
    """The means of all processes: of the rows of each, or of what each knows of all rows."""
    means = accelerator.reduce(torch.stack([term.detach().float() for term in terms.values()]), "mean")
    return dict(zip(terms, means.tolist(), strict=True))


def _seed(seed: int, step: int, rank: int, part: int) -> None:
    torch.manual_seed(hash((seed, step, rank, part) if part else (seed, step, rank)))


def _hopeless(loop: Loop, step: int, values: dict[str, float], bad: int) -> str:
    which = f"loss {values['loss']:.3g}, gradient norm {values['grad_norm']:.3g}"
    return (
        f"{loop.name}: not a finite number in {bad} step{'s' * (bad > 1)} up to {step} ({which}); lower lr, set "
        "clip_norm, or precision=fp32; RUN/nonfinite.jsonl has their rows"
    )


def _pace(rows: int, batch: Any, world: int, began: float, fetched: float) -> dict[str, float]:
    """How fast the step was, which share of it the data took, and the most memory so far."""
    took = time.perf_counter() - began
    tokens = world * batch.tokens
    pace = {"pairs_per_s": rows / took, "wait": (fetched - began) / took}
    if tokens:
        pace["tokens_per_s"] = tokens / took
    if torch.cuda.is_available():
        pace["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return pace


def _rows(loop: Loop, start: int) -> Iterator[tuple[int, np.ndarray]]:
    for epoch in range(start // loop.per_epoch, -(-loop.steps // loop.per_epoch)):
        for step, rows in enumerate(loop.batches(epoch), epoch * loop.per_epoch):
            if start <= step < loop.steps:
                yield step, rows


def _postfix(values: dict[str, float]) -> str:
    terms = {name: value for name, value in values.items() if "-" in name or name in ("translation", "contrast")}
    shown = {"loss": values["loss"], **(terms if len(terms) > 1 else {})}
    pace = [f"{values['pairs_per_s']:.0f} pairs/s"]
    if "tokens_per_s" in values:
        pace.append(f"{values['tokens_per_s']:.0f} tokens/s")
    pace.append(f"data {values['wait']:.0%}")
    if "memory_gb" in values:
        pace.append(f"{values['memory_gb']:.1f} GB")
    return "  ".join([*(f"{k} {v:.4g}" for k, v in shown.items()), f"lr {values['lr']:.2g}", *pace])


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
