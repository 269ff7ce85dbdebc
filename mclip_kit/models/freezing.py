"""Which weights learn, and in which mode the towers are."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def only(model: nn.Module, names: Collection[str]) -> None:
    """Let the parameters of these names learn, and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def train_only(model: nn.Module, mode: bool) -> None:
    """Training mode for the towers that learn; frozen ones stay in eval mode: no dropout, no running statistics."""
    for tower in model.children():
        tower.train(mode and any(parameter.requires_grad for parameter in tower.parameters()))
