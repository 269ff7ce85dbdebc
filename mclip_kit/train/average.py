"""A moving average of the weights that a stage trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
