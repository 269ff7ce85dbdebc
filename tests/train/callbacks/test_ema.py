"""The moving average of weights."""

import torch
from torch import nn

from mclip_kit.train.callbacks.ema import AveragedWeights


def test_the_average_moves_towards_the_weights() -> None:
    model = nn.Linear(2, 2, bias=False)
    average = AveragedWeights(model, {"weight"}, 0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update()
    average.update()
    torch.testing.assert_close(average.values["weight"], start + 1 - 0.9**2)


def test_inside_the_model_has_the_average_and_afterwards_its_own_weights() -> None:
    model = nn.Linear(2, 2)
    average = AveragedWeights(model, {"weight"}, 0.5)
    average.values["weight"].fill_(7.0)
    own, bias = model.weight.detach().clone(), model.bias.detach().clone()
    with average.swap_in():
        assert (model.weight == 7).all()
        assert (model.bias == bias).all()
    assert (model.weight == own).all()
    assert (average.values["weight"] == 7).all()


def test_only_the_named_parameters_are_averaged() -> None:
    model = nn.Linear(2, 2)
    average = AveragedWeights(model, {"bias"}, 0.5)
    own = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
        model.bias.add_(1.0)
    average.update()
    assert set(average.values) == {"bias"}
    with average.swap_in():
        assert (model.weight == own + 1).all()
