"""Attention in training: torch's bits, without its detours."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mclip_kit.models.attention import SelfAttention, speed_up
from mclip_kit.models.clip import build_clip

B, T, D = 3, 7, 32
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 2},
}


def causal() -> Tensor:
    return torch.full((T, T), float("-inf")).triu(1)


def made() -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """torch's module, and ours with its weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(D, 4, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = deepcopy(theirs)
    speed_up(ours)
    assert type(ours) is SelfAttention
    return theirs, ours


def results(attention: nn.Module, mask: Tensor | None) -> list[Tensor]:
    """The output, and the gradients of the input and of the weights."""
    torch.manual_seed(1)
    x_BTD = torch.randn(B, T, D, requires_grad=True)
    out_BTD = attention(x_BTD, x_BTD, x_BTD, need_weights=False, attn_mask=mask)[0]
    if out_BTD.requires_grad:
        out_BTD.backward(torch.randn(B, T, D))
    return [out_BTD.detach(), *(p.grad for p in (x_BTD, *attention.parameters()) if p.grad is not None)]


@pytest.mark.parametrize("mask", [None, causal()], ids=["all", "causal"])
@pytest.mark.parametrize("how", ["train", "eval", "bf16", "frozen"])
def test_outputs_and_gradients_have_torchs_bits(how: str, mask: Tensor | None) -> None:
    found = []
    for attention in made():
        attention.train(how != "eval").requires_grad_(how != "frozen")
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "bf16"):
            found.append(results(attention, mask))
    assert len(found[0]) == len(found[1]) == (2 if how == "frozen" else 6)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("mask", [torch.ones(T, T).triu(1).bool(), causal().expand(B * 4, T, T)], ids=["bool", "each"])
def test_other_calls_are_torchs_own(mask: Tensor) -> None:
    theirs, ours = (results(attention, mask) for attention in made())
    assert all(map(torch.equal, theirs, ours))
    x_BTD, other_BTD = torch.randn(2, B, T, D)
    theirs, ours = (attention(x_BTD, other_BTD, other_BTD, average_attn_weights=False) for attention in made())
    assert all(map(torch.equal, theirs, ours))


class Counted(TorchDispatchMode):
    """Counts the calls of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = str(function)
        self.calls[name] = self.calls.get(name, 0) + 1
        return function(*arguments, **(options or {}))


def test_a_trained_clip_fills_no_gradients_of_its_projections_with_zeros() -> None:
    clip = build_clip(TOWERS, "random")
    attentions = [part for part in clip.model.modules() if isinstance(part, nn.MultiheadAttention)]
    assert len(attentions) == 4
    for attention in attentions:
        with Counted() as counted:
            results(attention, None)
        assert "aten.select_backward.default" not in counted.calls
        assert counted.calls["aten.stack.default"] == 1
