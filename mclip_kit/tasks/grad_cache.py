"""The gradients of a batch that does not fit into memory: computed in parts of `micro_batch` rows.

A contrastive loss compares every row with every other, so it is not a mean of the losses of parts. Gradient caching
(Gao et al. 2021, arXiv 2101.06983) computes it exactly: embed all parts without gradients; compute the loss of all
embeddings and its gradients with respect to them; embed each part again, with gradients, and continue backward.
"""

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mclip_kit.tasks.base import Seed
from mclip_kit.tasks.triangle_loss import Slopes, Triangle, TriangleBatch


def accumulated(
    accelerator: Accelerator, triangle: nn.Module, batch: TriangleBatch, seed: Seed, size: int
) -> dict[str, Tensor]:
    """Gradient accumulation over parts of `size` rows, for losses that are means over rows.

    Like all functions here it leaves the gradients in the parameters and returns the loss terms.
    """
    sums: dict[str, Tensor] = {}
    parts = batch.split(size)
    for number, part in enumerate(parts):
        share = len(part) / len(batch)
        with _synchronized(accelerator, triangle, number == len(parts) - 1):
            seed(number)
            terms = triangle(part)
            accelerator.backward(terms["loss"] * share)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach() * share
    return sums


def cached(
    accelerator: Accelerator, triangle: nn.Module, batch: TriangleBatch, seed: Seed, size: int
) -> dict[str, Tensor]:
    """Gradient caching over parts of `size` rows, in two passes, for losses that compare rows."""
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
        with _synchronized(accelerator, triangle, last):
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


def _synchronized(accelerator: Accelerator, triangle: nn.Module, now: bool) -> Any:
    """Processes average their gradients after the last part only."""
    return nullcontext() if now else accelerator.no_sync(triangle)
