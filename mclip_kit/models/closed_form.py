"""The best linear map from pooled states to another space, in closed form, and projectors that compute it.

Shapes: N rows, B rows of a block, H width of the states, D width of the targets.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mclip_kit.errors import RecipeError
from mclip_kit.models.projectors import NoisyStandardization, Projector

LAMBDAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""From which the strength of ridge regression is chosen, as shares of the states' mean variance."""


@dataclass(frozen=True)
class Moments:
    """What ridge regression needs of N rows, float64: memory does not grow with N.

    Attributes:
        rows: N.
        state_H, target_D: means.
        states_HH: covariance of the states.
        cross_HD: covariance of states with targets.
    """

    rows: int
    state_H: Tensor
    target_D: Tensor
    states_HH: Tensor
    cross_HD: Tensor

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Tensor]]) -> "Moments":
        """The moments of blocks of states (B, H) and targets (B, D), read once.

        Raises:
            ValueError: there is no row.

        >>> states_NH, targets_ND = torch.eye(3), torch.ones(3, 2)
        >>> Moments.of([(states_NH[:2], targets_ND[:2]), (states_NH[2:], targets_ND[2:])]).target_D.tolist()
        [1.0, 1.0]
        """
        rows, sums = 0, list[Tensor]()
        for states, targets in blocks:
            x_BH, y_BD = states.double(), targets.double()
            new = [x_BH.sum(0), y_BD.sum(0), x_BH.T @ x_BH, x_BH.T @ y_BD]
            sums = [old + part for old, part in zip(sums, new, strict=True)] if rows else new
            rows += len(x_BH)
        if not rows:
            raise ValueError("there is no row to solve for")
        state_H, target_D, states_HH, cross_HD = (part / rows for part in sums)
        return cls(
            rows,
            state_H,
            target_D,
            states_HH - torch.outer(state_H, state_H),
            cross_HD - torch.outer(state_H, target_D),
        )

    def scaled(self, scale_H: Tensor) -> "Moments":
        """The moments of the states after they are centred and multiplied by `scale_H`."""
        states_HH = self.states_HH * torch.outer(scale_H, scale_H)
        cross_HD = self.cross_HD * scale_H[:, None]
        return Moments(self.rows, torch.zeros_like(self.state_H), self.target_D, states_HH, cross_HD)


def ridge(moments: Moments, strength: float) -> tuple[Tensor, Tensor]:
    """Ridge regression (Hoerl & Kennard 1970): the map with the least squared error plus a penalty of its weights.

    Args:
        moments: of states and targets.
        strength: lambda, as a share of the states' mean variance; larger maps are smaller.
    Returns:
        Weights (H, D) and bias (D,), float64: targets are about `states @ weights + bias`.

    >>> states_NH = torch.randn(50, 3, dtype=torch.float64)
    >>> weights_HD, bias_D = ridge(Moments.of([(states_NH, 2 * states_NH + 1)]), 1e-9)
    >>> torch.allclose(weights_HD, 2 * torch.eye(3).double()), torch.allclose(bias_D, torch.ones(3).double())
    (True, True)
    """
    penalty = strength * moments.states_HH.diagonal().mean()
    penalised_HH = moments.states_HH + penalty * torch.eye(len(moments.states_HH)).to(moments.states_HH)
    weights_HD = torch.linalg.solve(penalised_HH, moments.cross_HD)
    return weights_HD, moments.target_D - moments.state_H @ weights_HD


def why_not(projector: Projector) -> str | None:
    """Why a projector cannot compute every linear map of pooled states, in one sentence; None: it can."""
    if projector.blocks is not None:
        return "a transformer projector has no closed form; use linear, mlp or altclip"
    first, last = _ends(projector.head)
    H, inner, D = first.in_features, first.out_features, last.out_features
    if _is_mlp(projector.head) and inner < 2 * min(H, D):
        return f"an mlp needs a hidden width of at least {2 * min(H, D)} for a linear map; projector.hidden is {inner}"
    if first is not last and not _is_mlp(projector.head) and inner < D:
        return f"the inner width must be at least {D} for every linear map; projector.hidden is {inner}"
    return None


def states_before(projector: Projector, pooled_BH: Tensor) -> Tensor:
    """Pooled states as the first linear layer gets them, but for standardisation, which `set_linear` does."""
    assert isinstance(projector.head, nn.Sequential)
    normalized: Tensor = projector.head[0](pooled_BH) if isinstance(projector.head[0], nn.LayerNorm) else pooled_BH
    return normalized


@torch.no_grad()
def set_linear(projector: Projector, moments: Moments, strength: float) -> None:
    """Set a projector's weights so that, in eval mode, it is the map of `ridge`.

    - `linear`: exact; of two maps the second is the identity. With `noise`, its running mean and variance become
      those of the states.
    - `mlp`: exact, because gelu(x) - gelu(-x) = x: two hidden units for each direction of the map. Other hidden units
      keep their random input weights and have no output yet.
    - `altclip`: exact; the map of the states after its LayerNorm is the first layer, and the last one is the identity.

    Args:
        projector: one for which `why_not` is None.
        moments: of `states_before`, and targets.
        strength: lambda of `ridge`.
    """
    head = projector.head
    assert isinstance(head, nn.Sequential)
    if isinstance(head[0], NoisyStandardization):
        norm = head[0].norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(moments.state_H)
        norm.running_var.copy_(moments.states_HH.diagonal())
        moments = moments.scaled((moments.states_HH.diagonal() + norm.eps).rsqrt())
    weights_HD, bias_D = ridge(moments, strength)
    first, last = _ends(head)
    if first is last:
        _fill(first, weights_HD.T, bias_D)
        return
    H, D = weights_HD.shape
    one = torch.eye(D).to(weights_HD)
    if not _is_mlp(head):
        _fill(first, weights_HD.T, bias_D)
        _fill(last, one)
    elif D <= H:
        _fill(first, torch.cat([weights_HD.T, -weights_HD.T]), keep=True)
        _fill(last, torch.cat([one, -one], 1), bias_D)
    else:
        same = torch.eye(H).to(weights_HD)
        _fill(first, torch.cat([same, -same]), keep=True)
        _fill(last, torch.cat([weights_HD.T, -weights_HD.T], 1), bias_D)


def set_best(projector: Projector, moments: Moments, score: Callable[[], float]) -> tuple[float, str]:
    """Set a projector, see `set_linear`, to the lambda of `LAMBDAS` with the best score; the smallest of equal ones.

    Args:
        score: of the projector as it is then; higher is better.
    Returns:
        The lambda, and the score of each in words.
    """
    scores = []
    for strength in LAMBDAS:
        set_linear(projector, moments, strength)
        scores.append(score())
    best = LAMBDAS[int(np.argmax(scores))]
    set_linear(projector, moments, best)
    return best, ", ".join(f"{strength:g} {found:.1f}" for strength, found in zip(LAMBDAS, scores, strict=True))


def _fill(layer: nn.Linear, weight: Tensor, bias: Tensor | None = None, keep: bool = False) -> None:
    """Put a matrix into the corner of a layer's weight; the rest is zero, or, with `keep`, other rows stay random."""
    rows, columns = weight.shape
    if not keep:
        layer.weight.zero_()
    layer.weight[:rows, :columns] = weight.to(layer.weight)
    if layer.bias is not None:
        layer.bias.zero_()
        if bias is not None:
            layer.bias[: len(bias)] = bias.to(layer.bias)


def _is_mlp(head: nn.Module) -> bool:
    return any(isinstance(part, nn.GELU) for part in head.children())


def _ends(head: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    layers = [part for part in head.children() if isinstance(part, nn.Linear)]
    return layers[0], layers[-1]


def check_init(projector: Projector, clip_projector: str) -> None:
    """RecipeError if `projector.init: ridge` cannot be done exactly."""
    reason = why_not(projector)
    if clip_projector != "none":
        reason = "the map has no target while clip_projector is learned; set clip_projector: none"
    if reason:
        raise RecipeError(f"projector.init: ridge: {reason}")
