"""SigLIP's loss against a slow version from the paper's algorithm, and against open_clip's."""

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from mclip_kit.losses.sigmoid import sigmoid
from tests.losses.test_losses import GROUPS, TEXTS, embeddings, gradients
from tests.losses.test_losses import cosine as slow_cosine

SCALE, BIAS = 10.0, -10.0


def slow_sigmoid(a: Tensor, b: Tensor, groups: list[int], texts: list[int] | None = None) -> float:
    """Algorithm 1 of the paper, a pair at a time; the same text in another group is left out."""
    left, right = a.detach().double().numpy(), b.detach().double().numpy()
    total = 0.0
    for i, row in enumerate(left):
        for j, other in enumerate(right):
            same = groups[i] == groups[j]
            if texts is not None and texts[i] == texts[j] and not same:
                continue
            logit = SCALE * slow_cosine(row, other) + BIAS
            total += math.log1p(math.exp(-logit if same else logit))
    return total / len(left)


@pytest.mark.parametrize("groups", [list(range(8)), GROUPS, [7] * 8], ids=["all different", "some equal", "all equal"])
@pytest.mark.parametrize("texts", [None, TEXTS], ids=["texts differ", "same texts"])
def test_it_is_the_papers_algorithm(groups, texts):
    a_BD, b_BD = embeddings()
    found = sigmoid(
        a_BD, b_BD, SCALE, BIAS, torch.tensor(groups), texts_B=None if texts is None else torch.tensor(texts)
    )
    assert found.item() == pytest.approx(slow_sigmoid(a_BD, b_BD, groups, texts), rel=1e-5)


@pytest.mark.parametrize("groups", [None, torch.tensor([5, 3, 8, 1, 0, 2, 9, 4])], ids=["none", "all different"])
def test_it_is_open_clips_loss_with_its_gradients(groups):
    a_BD, b_BD = embeddings()
    scale, bias = torch.tensor(SCALE, requires_grad=True), torch.tensor(BIAS, requires_grad=True)
    ours = sigmoid(a_BD, b_BD, scale, bias, groups)
    theirs = SigLipLoss()(F.normalize(a_BD), F.normalize(b_BD), scale, bias)
    torch.testing.assert_close(ours, theirs)
    leaves = (a_BD, b_BD, scale, bias)
    torch.testing.assert_close(gradients(ours, *leaves), gradients(theirs, *leaves))


def test_other_rows_are_ignored_and_both_orders_are_the_same():
    a_BD, b_BD = embeddings()
    keep_B = torch.tensor([True, False, True, True, False, False, True, True])
    groups_B, texts_B = torch.tensor(GROUPS), torch.tensor(TEXTS)
    found = sigmoid(a_BD, b_BD, SCALE, BIAS, groups_B, keep_B, texts_B)
    some = [column[keep_B] for column in (a_BD, b_BD, groups_B, texts_B)]
    torch.testing.assert_close(found, sigmoid(*some[:2], SCALE, BIAS, some[2], texts_B=some[3]))
    torch.testing.assert_close(found, sigmoid(b_BD, 2 * a_BD, SCALE, BIAS, groups_B, keep_B, texts_B))
