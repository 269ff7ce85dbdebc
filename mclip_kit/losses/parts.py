"""Sums over all pairs of rows without the N x N matrix: a few rows at once, computed again for the gradients.

Shapes: B rows of this process, N rows of all processes, C rows that are compared at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mclip_kit import losses


def mean_in_parts(sum_of_rows: Callable[..., Tensor], rows: tuple[Tensor, ...], columns: int) -> Tensor:
    """The mean over N rows of a sum over pairs, of which this process computes its own rows.

    Args:
        sum_of_rows: some of the rows to a scalar, the sum of their losses; it compares them with all N columns.
        rows: what is known of each of the B rows, one tensor a fact.
        columns: N; if it is 0, the mean is 0.
    Returns:
        A scalar. Its mean over processes is the mean over all N rows, and the mean of its gradients is their gradient.
    """
    size = max(1, losses.LOGITS // max(1, columns))
    parts = list(zip(*(fact.split(size) for fact in rows), strict=True))
    if len(parts) == 1:
        sums = [sum_of_rows(*parts[0])]
    else:
        sums = [checkpoint(sum_of_rows, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return losses.processes() * torch.stack(sums).sum() / max(1, columns)
