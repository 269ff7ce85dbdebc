"""Ridge regression from moments, and projectors that compute its map exactly."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mclip_kit.errors import RecipeError
from mclip_kit.models.closed_form import Moments, check_init, ridge, set_linear, states_before
from mclip_kit.models.projectors import Projector, build_projector

H, N = 6, 40


def data(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States (N, H), no two directions of equal variance, and targets (N, width)."""
    torch.manual_seed(0)
    states_NH = torch.randn(N, H) * torch.arange(1.0, H + 1) + 3
    return states_NH, states_NH @ torch.randn(H, width) + torch.randn(N, width) + 1


def test_ridge_is_least_squares_of_rows_with_penalty_rows() -> None:
    states_NH, targets_ND = data(4)
    moments = Moments.of([(states_NH[:7], targets_ND[:7]), (states_NH[7:], targets_ND[7:])])
    weights_HD, bias_D = ridge(moments, 0.1)
    x, y = states_NH.double().numpy(), targets_ND.double().numpy()
    penalty = 0.1 * x.var(0).mean()  # slow twin: the penalty as rows of their own, solved by NumPy's least squares
    rows = np.concatenate([x - x.mean(0), np.sqrt(N * penalty) * np.eye(H)])
    wanted = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((H, 4))]), rcond=None)[0]
    np.testing.assert_allclose(weights_HD.numpy(), wanted, atol=1e-9)
    np.testing.assert_allclose(bias_D.numpy(), y.mean(0) - x.mean(0) @ wanted, atol=1e-9)


def projector_of(kind: str, width: int, **options: object) -> Projector:
    return build_projector(kind, "mean", SimpleNamespace(hidden_size=H), width, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [4, 9])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(
            ("linear", {}),
            ("linear", {"noise": 0.5}),
            ("linear", {"hidden": 10}),
            ("linear", {"noise": 0.5, "hidden": 9}),
        ),
        *(("mlp", {}), ("mlp", {"noise": 0.5, "hidden": 13}), ("altclip", {})),
    ],
)
def test_every_kind_computes_the_map(kind: str, options: dict[str, object], width: int) -> None:
    states_NH, targets_ND = data(width)
    projector = projector_of(kind, width, **options).eval()
    moments = Moments.of([(states_before(projector, states_NH), targets_ND)])
    set_linear(projector, moments, 0.01)
    inputs_NH = states_before(projector, states_NH).double()
    if options.get("noise"):
        inputs_NH = (inputs_NH - inputs_NH.mean(0)) / (inputs_NH.var(0, correction=0) + 1e-5).sqrt()
    weights_HD, bias_D = ridge(Moments.of([(inputs_NH, targets_ND)]), 0.01)
    with torch.no_grad():
        torch.testing.assert_close(
            projector.head(states_NH).double(), inputs_NH @ weights_HD + bias_D, atol=2e-5, rtol=0
        )


def test_hidden_units_that_the_map_does_not_need_can_learn() -> None:
    states_NH, targets_ND = data(4)
    projector = projector_of("mlp", 4)
    set_linear(projector, Moments.of([(states_NH, targets_ND)]), 0.01)
    projector.head(states_NH).square().mean().backward()
    last = projector.head[-1]  # type: ignore[index]
    assert (last.weight[:, 8:] == 0).all()
    assert (last.weight.grad[:, 8:] != 0).any()


def test_what_has_no_exact_map_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"hidden width of at least 8 .*projector.hidden is 7"):
        check_init(projector_of("mlp", 4, hidden=7), "none")
    for kind in ("altclip", "linear"):
        with pytest.raises(RecipeError, match=r"inner width must be at least 4 .*projector.hidden is 3"):
            check_init(projector_of(kind, 4, hidden=3), "none")
    with pytest.raises(RecipeError, match="clip_projector"):
        check_init(projector_of("linear", 4), "linear")
    check_init(projector_of("mlp", 4), "none")
    with pytest.raises(ValueError, match="no row"):
        Moments.of([])
