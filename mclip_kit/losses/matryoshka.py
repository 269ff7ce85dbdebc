"""A loss of several widths at once, so that the first numbers of an embedding are an embedding too."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def matryoshka(loss: Callable[..., Tensor], widths: Sequence[int], *sides: Tensor) -> Tensor:
    """The mean of a loss over prefixes of the embeddings (Matryoshka representation learning, arXiv 2205.13147).

    With weights of one over the number of widths, sentence-transformers' MatryoshkaLoss has the same value for losses
    that normalise.

    Args:
        loss: embeddings (B, d) to a scalar; one that normalises does so for each prefix.
        widths: d, each at most the width of the sides.
        sides: embeddings (B, D).
    Returns:
        A scalar.

    Example:
        >>> side_BD = torch.tensor([[1.0, 2.0, 3.0]])
        >>> float(matryoshka(Tensor.sum, [1, 3], side_BD))
        3.5
    """
    return torch.stack([loss(*(side[:, :width] for side in sides)) for width in widths]).mean()
