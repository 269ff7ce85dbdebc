"""What a run will take, before it starts: `mclip-kit train --dry-run`.

Every stage takes ten steps on as few rows as are quick, which are scaled up to its batch. Nothing is written.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mclip_kit.features.filling import FULL, NoRoom
from mclip_kit.files import readable
from mclip_kit.tasks.base import Task, Trial, timed
from mclip_kit.train import fsdp
from mclip_kit.train.optim import optimizer_of, set_activation_checkpointing
from mclip_kit.urls import is_copy

STEPS = 10
QUICK = 1.0  # seconds that a measured step may take


def dry_run(accelerator: Accelerator, task: Task) -> Iterator[str]:
    """Lines about a stage's time, memory and features."""
    process = psutil.Process().memory_info().rss
    module = task.module()
    if task.stage.checkpointing:
        set_activation_checkpointing(module.model, True)
    optimizer = accelerator.prepare(optimizer_of(module, task.stage))
    wrapped = fsdp.prepare(accelerator, module).train()

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        task.gradients(accelerator, wrapped, batch, lambda part: None)
        optimizer.step()

    trial = task.trial()
    batch, _ = trial.sample(2)
    seconds = min(timed(lambda: step(batch))[0] for _ in range(3))  # the first one warms up
    count = int(np.clip(2 * QUICK / max(seconds, 1e-6), 2, min(trial.share, trial.rows)))
    batch, kept = trial.sample(count)
    with _saved_for_backward(module.model) as saved:
        step(batch)
    times = [timed(lambda: step(batch))[0] for _ in range(STEPS)]
    whole = median(times) * trial.share / count
    yield (
        f"{task.stage.name}: {trial.rows:,} rows, {trial.steps:,} steps of {trial.size}; "
        f"about {_clock(whole)} a step ({STEPS} steps of {count} rows took {median(times):.3g} s, {min(times):.3g} to "
        f"{max(times):.3g}), {_clock(whole * trial.steps)} in all"
    )
    if task.stage.warmup_steps >= trial.steps:
        yield f"  warmup_steps {task.stage.warmup_steps:,}: in {trial.steps:,} steps the rate does not reach lr"
    average = _trained(module.model) if task.stage.ema else 0
    yield _memory(trial, module.model, sum(saved.values()) * trial.together / count, process, average)
    for name, items, size, took in kept:
        yield f"  features, {name}: {readable(items * size)}, filled in about {_clock(took * items)}"
    _check_room(task, sum(items * size for _, items, size, _ in kept))
    accelerator.free_memory()


def _trained(model: nn.Module) -> int:
    """Bytes of the weights that are trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def _memory(trial: Trial, model: nn.Module, activations: float, process: int, average: int) -> str:
    """The memory of one process on its device.

    Args:
        activations: bytes of a step's.
        process: resident bytes of the process with the model, before the stage.
        average: bytes of the moving average of the weights.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = 3 * _trained(model) + average  # gradients, and Adam's and LAMB's two moments
    device = next(model.parameters()).device
    if device.type == "cuda":
        free, there = torch.cuda.mem_get_info(device)
        others = there - free - torch.cuda.memory_reserved(device)
    else:
        there = psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        others = max(0, process - weights)
    needed = others + weights + moments + activations
    line = (
        f"  memory: {readable(needed)} of {readable(there)}: the process itself {readable(others)}, weights "
        f"{readable(weights)}, gradients and moments {readable(moments)}, activations of {trial.together:,} rows "
        f"{readable(activations)}"
    )
    return line if needed < there else f"{line}; too much: set {trial.advice}"


def _check_room(task: Task, size: float) -> None:
    """NoRoom if the disk has no room for the features of the stage; with cache: auto they need not be kept."""
    root, features = task.context.cache.root, task.context.recipe.cache.features
    if root is None or features not in ("pooled", "tokens") or is_copy(root) or any(root.glob("*/table.json")):
        return  # or some of them may be there already; those in object storage need not fit the disk
    place = next(folder for folder in (root.resolve(), *root.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if size > FULL * free:
        raise NoRoom(
            f"stage {task.stage.name}: features would take {readable(size)}, but {root} has {readable(free)} free; set "
            "cache.folder, cache.dtype=int8 for token states, or cache=auto"
        )


@contextmanager
def _saved_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """What autograd keeps for the backward pass besides the weights: storage -> bytes."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _clock(seconds: float) -> str:
    """A duration, in a readable unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"
