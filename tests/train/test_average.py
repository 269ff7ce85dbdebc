"""The moving average of weights."""

import torch
from torch import nn

from mclip_kit.train.average import Average


def test_the_average_moves_towards_the_weights():
    model = nn.Linear(2, 2, bias=False)
    average = Average(model, {"weight"}, 0.9)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update()
    average.update()
    torch.testing.assert_close(average.values["weight"], start + 1 - 0.9**2)


def test_inside_the_model_has_the_average_and_behind_its_own():
    model = nn.Linear(2, 2)
    average = Average(model, {"weight"}, 0.5, {"weight": torch.full((2, 2), 7.0)})
    own, bias = model.weight.detach().clone(), model.bias.detach().clone()
    with average.applied():
        assert (model.weight == 7).all()
        assert (model.bias == bias).all()
    assert (model.weight == own).all()
    assert (average.values["weight"] == 7).all()


def test_without_a_decay_nothing_is_averaged():
    model = nn.Linear(2, 2)
    average = Average(model, {"weight"}, None)
    own = model.weight.detach().clone()
    average.update()
    with average.applied():
        assert (model.weight == own).all()
    assert average.values == {}
