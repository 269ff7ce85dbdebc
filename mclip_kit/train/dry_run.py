"""What a run will take, before it starts: `mclip-kit train --dry-run`.

Every stage takes ten steps on as few rows as are quick, which are scaled up to its batch. Nothing is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mclip_kit.files import readable
from mclip_kit.tasks.base import Task, Trial, timed
from mclip_kit.train import fsdp
from mclip_kit.train.optim import optimizer_of, set_activation_checkpointing

STEPS = 10
QUICK = 1.0  # seconds that a measured step may take


def dry_run(accelerator: Accelerator, task: Task) -> Iterator[str]:
    """Lines about a stage's time, memory and features."""
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
    yield _memory(trial, module.model, sum(saved.values()) * trial.together / count)
    for name, items, size, took in kept:
        yield f"  features, {name}: {readable(items * size)}, filled in about {_clock(took * items)}"
    accelerator.free_memory()


def _memory(trial: Trial, model: nn.Module, activations: float) -> str:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    device = next(model.parameters()).device
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total
    needed = weights + 3 * gradients + activations  # Adam's and LAMB's two moments
    line = (
        f"  memory: {readable(needed)} of {readable(there)}: weights {readable(weights)}, gradients and moments "
        f"{readable(3 * gradients)}, activations of {trial.together:,} rows {readable(activations)}"
    )
    return line if needed < there else f"{line}; too much: set {trial.advice}"


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
