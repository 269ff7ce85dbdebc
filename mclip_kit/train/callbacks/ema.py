"""Exponential moving average of the weights that a stage trains (Polyak and Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mclip_kit.train import fsdp
from mclip_kit.train.callbacks.base import Callback, Progress
from mclip_kit.train.checkpoint import TrainState


class AveragedWeights:
    """Weights averaged over steps: decay * average + (1 - decay) * weight.

    Args:
        model: what is trained.
        names: parameters to average.
        decay: of the average in a step.
    """

    def __init__(self, model: nn.Module, names: frozenset[str] | set[str], decay: float) -> None:
        self._decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if name in names}
        self.values = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        for name, weight in self._weights.items():
            self.values[name].lerp_(weight, 1 - self._decay)

    @contextmanager
    def swap_in(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; outside its own."""
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


class Ema(Callback):
    """Keeps the average if the stage has `ema`; the average is scored and kept."""

    def __init__(self, at: Progress, state: TrainState) -> None:
        super().__init__(at, state)
        self._average: AveragedWeights | None = None
        if at.stage.ema is not None:
            self._average = AveragedWeights(at.run.model, at.trained, at.stage.ema)
            if state.average:
                with self._average.swap_in():
                    fsdp.load_full_state(at.run.model, state.average)

    def after_step(self) -> None:
        """Update the average."""
        if self._average:
            self._average.update()

    @contextmanager
    def weights_to_evaluate(self) -> Iterator[None]:
        """The averaged weights."""
        if self._average is None:
            yield
        else:
            with self._average.swap_in():
                yield

    def add_to_checkpoint(self, state: TrainState) -> None:
        """The averaged weights, in whole tensors."""
        if self._average:
            with self._average.swap_in():
                state.average = self._full()

    def restore_weights(self) -> None:
        """The stage ends with the averaged weights."""
        if self._average:
            with self._average.swap_in():
                tensors = self._full()
            fsdp.load_full_state(self.at.run.model, tensors)

    def _full(self) -> dict[str, Tensor]:
        state = fsdp.full_state(self.at.run.model)
        return {name: state[name].clone() for name in self._average.values if name in state} if self._average else {}
