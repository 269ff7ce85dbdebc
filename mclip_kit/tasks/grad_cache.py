"""The gradients of one step: of the whole batch at once, or in parts that fit into memory.

A contrastive loss compares every row with every other, so parts of a batch have not the loss of the batch. Gradient
caching (Gao et al. 2021, arXiv 2101.06983) has it exactly: embed all parts without gradients; take the loss of all
embeddings and its gradients by them; embed each part again, with gradients, and go on from there.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mclip_kit.tasks.triangle import Slopes, Triangle, TriangleBatch

Seed = Callable[[int], None]
"""Sets the state of all draws (dropout) for a part, by its number."""


def whole(accelerator: Accelerator, triangle: nn.Module, batch: TriangleBatch, seed: Seed) -> dict[str, Tensor]:
    """The batch at once. All three leave gradients in the parameters, and return the loss terms."""
    seed(0)
    terms: dict[str, Tensor] = triangle(batch)
    accelerator.backward(terms["loss"])
    return terms


def accumulated(
    accelerator: Accelerator, triangle: nn.Module, batch: TriangleBatch, seed: Seed, size: int
) -> dict[str, Tensor]:
    """Parts of `size` rows one after the other, for losses that are means over rows."""
    sums: dict[str, Tensor] = {}
    parts = batch.split(size)
    for number, part in enumerate(parts):
        share = len(part) / len(batch)
        with _synchronised(accelerator, triangle, number == len(parts) - 1):
            seed(number)
            terms = triangle(part)
            accelerator.backward(terms["loss"] * share)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach() * share
    return sums


def cached(
    accelerator: Accelerator, triangle: nn.Module, batch: TriangleBatch, seed: Seed, size: int
) -> dict[str, Tensor]:
    """Parts of `size` rows in two passes, for losses that compare rows; exactly the loss of the batch."""
    parts = batch.split(size)
    with torch.no_grad():
        embedded = []
        for number, part in enumerate(parts):
            seed(number)
            embedded.append(triangle(part, "embeddings"))
    leaves = {name: torch.cat([e[name].float() for e in embedded]).requires_grad_() for name in embedded[0]}
    terms, slopes = _slopes(accelerator.unwrap_model(triangle), leaves, batch)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with _synchronised(accelerator, triangle, last):
            seed(number)
            here = slopes.of_rows(slice(number * size, number * size + len(part)), scales=last)
            accelerator.backward(triangle(part, here)["loss"])
    return terms


def _slopes(triangle: Triangle, leaves: dict[str, Tensor], batch: TriangleBatch) -> tuple[dict[str, Tensor], Slopes]:
    terms = triangle.terms(leaves, batch)
    sources = [*leaves.values(), *triangle.scales.values()]
    slopes = torch.autograd.grad(terms["loss"], sources, allow_unused=True)
    filled = [torch.zeros_like(s) if slope is None else slope for s, slope in zip(sources, slopes, strict=True)]
    by_leaf = dict(zip(leaves, filled, strict=False))
    return terms, Slopes(by_leaf, dict(zip(triangle.scales.keys(), filled[len(leaves) :], strict=True)))


def _synchronised(accelerator: Accelerator, triangle: nn.Module, now: bool) -> Any:
    """Processes average their gradients behind the last part only."""
    return nullcontext() if now else accelerator.no_sync(triangle)
