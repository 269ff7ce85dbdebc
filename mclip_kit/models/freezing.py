"""Which parameters are trained, and which towers are in training mode."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; after it every submodule is in its former mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def freeze_all_but(model: nn.Module, names: Collection[str]) -> None:
    """Train the parameters of these names; freeze all others, and those without numbers, which never get a gradient.

    Gradients of an earlier stage are dropped: those of weights that are frozen now would count in the gradient norm.
    """
    model.zero_grad(set_to_none=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names and parameter.numel() > 0)


def set_training_mode(model: nn.Module, mode: bool) -> None:
    """Training mode for towers with trained parameters; frozen ones stay in eval mode (no dropout, no statistics)."""
    for tower in model.children():
        tower.train(mode and any(parameter.requires_grad for parameter in tower.parameters()))
