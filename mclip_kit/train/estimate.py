"""What a run will take, before it takes it: `mclip-kit train --dry-run`.

Every stage takes ten steps on as many rows as are quick, and is scaled up to its batch from there. Nothing is written.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from mclip_kit.data.examples import Examples
from mclip_kit.features.feed import Feed, Frozen, Needs
from mclip_kit.features.store import Store
from mclip_kit.files import readable
from mclip_kit.stage import Stage
from mclip_kit.towers.mode import evaluating
from mclip_kit.towers.model import MultilingualClip
from mclip_kit.triangle import Batch

STEPS = 10
QUICK = 1.0  # seconds that a measured step may take
NUMBER = {"fp16": 2, "fp32": 4, "int8": 1}


@dataclass
class Trial:
    """A stage in small, ready to be measured.

    Attributes:
        stage, examples: what it trains, on which rows.
        model: its towers, on the device.
        needs: vertices and live towers.
        share: rows of a step that one process has, of which `together` are in memory at once.
        step: takes a step on a batch: gradients, and the optimiser's.
        dtype: of stored features.
        seed: of the rows that are drawn.
    """

    stage: Stage
    examples: Examples
    model: MultilingualClip
    needs: Needs
    captions: Any
    share: int
    together: int
    step: Callable[[Batch], None]
    dtype: str
    seed: int = 0


def estimate(trial: Trial) -> Iterator[str]:
    """Lines about a stage's time, memory and features."""
    rows, fill, kept = _frozen_parts(trial, 2)
    seconds = min(_timed(lambda: trial.step(rows))[0] for _ in range(3))  # the first one warms up
    count = int(np.clip(2 * QUICK / max(seconds, 1e-6), 2, min(trial.share, len(trial.examples))))
    batch, fill, kept = _frozen_parts(trial, count)
    with _counting(trial.model) as saved:
        trial.step(batch)
    times = [_timed(lambda: trial.step(batch))[0] for _ in range(STEPS)]
    stage, per_epoch = trial.stage, len(trial.examples) // trial.stage.batch_size
    whole = median(times) * trial.share / count
    total = whole * per_epoch * stage.epochs
    yield (
        f"{stage.name}: {len(trial.examples):,} rows, {per_epoch * stage.epochs:,} steps of {stage.batch_size:,}; "
        f"about {_clock(whole)} a step ({STEPS} of {count} rows took {median(times):.3g} s, {min(times):.3g} to "
        f"{max(times):.3g}), {_clock(total)} in all"
    )
    yield _memory(trial, sum(saved.values()) * trial.together / count)
    for name, items, width in kept:
        size = items * width * NUMBER[trial.dtype if name == "token states" or trial.dtype != "int8" else "fp16"]
        yield f"  features, {name}: {readable(size)}, filled in about {_clock(fill[name] * items)}"


def _memory(trial: Trial, activations: float) -> str:
    weights = sum(p.numel() * p.element_size() for p in trial.model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in trial.model.parameters() if p.requires_grad)
    device = trial.model.device
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    needed = weights + 3 * gradients + activations  # Adam's and LAMB's two moments
    line = (
        f"  memory: {readable(needed)} of {readable(there)}: weights {readable(weights)}, gradients and moments "
        f"{readable(3 * gradients)}, what {trial.together:,} rows keep for the backward pass {readable(activations)}"
    )
    return line if needed < there else f"{line}; too much: set micro_batch or checkpointing"


def _frozen_parts(trial: Trial, count: int) -> tuple[Batch, dict[str, float], list[tuple[str, int, int]]]:
    """A batch of some rows in which frozen towers' outputs stand in for their inputs, as they do when they are kept.

    Returns:
        The batch; seconds an input of each kept feature; and (feature, inputs in all, width).
    """
    examples, needs, model = trial.examples, trial.needs, trial.model
    live = Needs(needs.vertices, needs.live, needs.templates, needs.shift, needs.colour, "off", 1.0)
    rows = np.random.default_rng(trial.seed).choice(len(examples), count, replace=False)
    fields = Feed(Frozen(model, Store()), examples, live, trial.captions).batch(rows)
    batch = Batch(**fields).to(model.device)
    took: dict[str, float] = {}
    kept: list[tuple[str, int, int]] = []

    def keep(name: str, inputs: int, items: int, tower: str, *given: Tensor | None) -> Tensor:
        module = getattr(model, tower)
        with evaluating(module):
            seconds, output = _timed(lambda: module(*given))
        took[name] = seconds / inputs
        kept.append((name, items, output.shape[-1]))
        return output

    if needs.cache != "off":
        if "image" in needs.vertices and "image" not in needs.live:
            images = len(np.unique(examples.images_N))
            batch.image_BE = keep("images", count, images, "image", batch.pixels_BCHW)
        if "teacher_text" in needs.vertices and "teacher_text" not in needs.live:
            texts = len({text for text in examples.teacher_texts if text})
            batch.teacher_BE = keep("teacher texts", count, texts, "teacher_text", batch.teacher_ids_BT)
        if "student_text" in needs.vertices and "encoder" not in needs.live and batch.mask_BT is not None:
            tokens, inputs = int(examples.lengths_N.sum()), int(batch.mask_BT.sum())
            batch.states_BTH = keep("token states", inputs, tokens, "encoder", batch.ids_BT, batch.mask_BT)
    return batch, took, kept


@contextmanager
def _counting(model: MultilingualClip) -> Iterator[dict[int, int]]:
    """What autograd keeps for the backward pass, beside the weights: storage -> bytes."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _clock(seconds: float) -> str:
    """A duration, for people."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"
