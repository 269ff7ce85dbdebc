"""Averages of the weights that a stage trains: over its steps, and between its start and its end."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def between(start: dict[str, Tensor], tuned: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights on the way from a start to what was tuned from it: share * tuned + (1 - share) * start.

    What did not change stays the same to the bit, and what is no fraction (a count) is the tuned one. Source: WiSE-FT,
    Wortsman et al. 2022, arXiv 2109.01903, section 3.
    """
    return {
        name: torch.lerp(weight, tuned[name].to(weight), share) if weight.is_floating_point() else tuned[name]
        for name, weight in start.items()
    }


class Average:
    """Weights averaged over steps: decay * average + (1 - decay) * weight (Polyak and Juditsky 1992).

    Args:
        model: what is trained.
        names: parameters to average.
        decay: of the average in a step; None averages nothing.
        known: an average to go on from.
    """

    def __init__(
        self, model: nn.Module, names: set[str], decay: float | None, known: dict[str, Tensor] | None = None
    ) -> None:
        self._decay = decay or 0.0
        self._weights = {} if decay is None else {n: p for n, p in model.named_parameters() if n in names}
        known = known or {}
        self.values = {n: known.get(n, p.detach()).to(p.device, copy=True) for n, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step in."""
        for name, weight in self._weights.items():
            self.values[name].lerp_(weight, 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again behind."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            held = weight.clone()
            weight.copy_(self.values[name])
            self.values[name].copy_(held)
