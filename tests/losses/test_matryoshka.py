"""Losses of prefixes against a slow version, and against sentence-transformers' MatryoshkaLoss."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_kit.losses import contrastive, mse
from mclip_kit.losses.distillation import cosine, kl, relational
from mclip_kit.losses.matryoshka import matryoshka
from mclip_kit.losses.sigmoid import sigmoid
from tests.losses.test_losses import embeddings, gradients, slow_contrastive

WIDTHS = [2, 3, 5]


def test_it_is_the_mean_over_prefixes_that_are_normalised_for_themselves():
    a_BD, b_BD = embeddings()
    found = matryoshka(partial(contrastive, scale=12.0), WIDTHS, a_BD, b_BD)
    slow = [slow_contrastive(a_BD[:, :width], b_BD[:, :width], 12.0, list(range(8))) for width in WIDTHS]
    assert found.item() == pytest.approx(sum(slow) / 3, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        *(cosine, relational, mse, partial(mse, normalize="both")),
        *(partial(contrastive, scale=2.0), partial(sigmoid, scale=2.0, bias=0.0)),
        lambda a, b: kl(a, b, b, 2.0),
    ],
)
def test_every_loss_has_finite_gradients_which_reach_the_last_number(loss):
    a_BD, b_BD = embeddings()
    (gradient_BD,) = gradients(matryoshka(loss, WIDTHS, a_BD, b_BD), a_BD)
    assert torch.isfinite(gradient_BD).all()
    assert gradient_BD[:, -1].any()
    (short_BD,) = gradients(matryoshka(loss, [2, 3], a_BD, b_BD), a_BD)
    assert not short_BD[:, 3:].any()


class Given(torch.nn.Module):
    """A model whose embeddings are given: its inputs."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["input"]}

    def get_embedding_dimension(self) -> int:
        return 5


def test_it_is_sentence_transformers_loss_with_its_gradients():
    module = pytest.importorskip("sentence_transformers", reason="the extra `sentence-transformers` is not installed")
    from sentence_transformers.sentence_transformer import losses as theirs

    model: Any = module.SentenceTransformer(modules=[Given()], device="cpu")
    a_BD, b_BD = embeddings()
    inner = theirs.MultipleNegativesSymmetricRankingLoss(model, scale=12.0)
    peer = theirs.MatryoshkaLoss(model, inner, WIDTHS, [1 / 3] * 3)([{"input": a_BD}, {"input": b_BD}], torch.ones(8))
    ours = matryoshka(partial(contrastive, scale=12.0), WIDTHS, a_BD, b_BD)
    torch.testing.assert_close(ours, peer)
    torch.testing.assert_close(gradients(ours, a_BD, b_BD), gradients(peer, a_BD, b_BD))
