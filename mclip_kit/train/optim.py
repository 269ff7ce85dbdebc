"""What is trained, by which optimiser, at which learning rate."""

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from timm.optim import Lamb
from torch import nn

from mclip_kit.errors import RecipeError
from mclip_kit.recipe import STUDENT


def trainable(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of the parameters that a stage trains.

    Args:
        patterns: towers (`student` is encoder and projector) or globs over parameter names.
    Raises:
        RecipeError: a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        towers = STUDENT if pattern == "student" else (pattern,)
        matches = {n for n in names for tower in towers if fnmatchcase(n, tower) or fnmatchcase(n, f"{tower}.*")}
        if not matches:
            raise RecipeError(f"train: {pattern!r} matches no parameter of the model")
        chosen |= matches
    return chosen


def build_optimizer(
    module: nn.Module,
    kind: Literal["adamw", "lamb"],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """An optimiser of the module's trainable parameters; biases, norms and scales are not decayed."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "lamb":
        # LAMB (arXiv 1904.00962) from timm; its own gradient clipping is off, the loop clips
        return Lamb(groups, lr=lr, betas=betas, eps=eps, max_grad_norm=None)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def learning_rate(
    peak: float, schedule: Literal["cosine", "inverse_sqrt", "constant"], warmup: int, total: int
) -> Callable[[int], float]:
    """The learning rate of step 0, 1, ..., total - 1.

    Linear warm-up, then: `cosine` down to 0; `inverse_sqrt`, peak * sqrt(warmup / step) (Vaswani et al. 2017,
    section 5.3, as in fairseq); `constant`.
    """

    def at(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        if schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        if schedule == "inverse_sqrt":
            return peak * math.sqrt(max(1, warmup) / max(1, step))
        return peak

    return at
