"""Clipping gradients by their norm: torch's bits, and no pass over gradients that are small enough."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mclip_kit.train.fsdp import clip_gradients

NORM = 5.0


def parameters() -> list[nn.Parameter]:
    """Two parameters whose gradients have the norm, and one without a gradient."""
    found = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    found[0].grad, found[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    return found


@pytest.mark.parametrize("most", [0.1, 1.0, NORM * (1 - 1e-7), NORM, NORM * (1 + 1e-7), 5.1, 1e9, math.inf, None])
def test_gradients_are_those_of_torch_and_small_ones_are_not_written(most: float | None) -> None:
    ours, theirs = parameters(), parameters()
    norm = clip_gradients(Accelerator(cpu=True), ours, most)
    assert norm == NORM == float(nn.utils.clip_grad_norm_(theirs, math.inf if most is None else most))
    for mine, other in zip(ours[:2], theirs, strict=False):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)
        assert mine.grad._version == (1 if most is not None and most < 5.005 else 0)
    assert ours[2].grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("most", [None, 1.0])
def test_the_norm_of_gradients_that_are_not_finite_is_not_finite(value: float, most: float | None) -> None:
    given = parameters()
    given[0].grad = torch.tensor([value, 1.0])
    assert not math.isfinite(clip_gradients(Accelerator(cpu=True), given, most))
    assert not math.isfinite(clip_gradients(Accelerator(cpu=True), given, most))
