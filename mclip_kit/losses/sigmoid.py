"""SigLIP's loss: every pair of rows is a question of its own, right or wrong. Shapes: see `mclip_kit.losses`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit import losses
from mclip_kit.losses.parts import mean_in_parts


def sigmoid(
    a_BD: Tensor,
    b_BD: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    groups_B: Tensor | None = None,
    keep_B: Tensor | None = None,
    texts_B: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss over all pairs of rows of all processes (SigLIP, arXiv 2303.15343, algorithm 1).

    The logit of a pair is scale * cosine + bias; the loss is -log sigmoid of it for a right pair, of its negative for a
    wrong one, summed over all pairs and divided by the number of rows. Without groups it equals open_clip's SigLipLoss.

    Args:
        a_BD, b_BD: embeddings, as many in every process; they are L2-normalised here.
        scale, bias: of the logits. SigLIP starts at 10 and -10, near the share of right pairs, and learns both.
        groups_B: int64; rows with the same number are right pairs of each other.
        keep_B: bool; other rows are ignored. If no row is kept, the loss is 0.
        texts_B: int64; rows with the same number have the same text. If the same text is in two groups, the pair is
            neither right nor wrong: it is left out.
    Returns:
        A scalar. Its mean over processes is the loss of all rows, and the mean of its gradients is their gradient.

    Example:
        >>> a_BD = torch.eye(3)
        >>> round(float(sigmoid(a_BD, a_BD, 10.0, -10.0)), 4)  # log 2 of the right pair
        0.6932
    """
    first = losses.rank() * len(a_BD)
    own_B = torch.arange(first, first + len(a_BD), device=a_BD.device)
    groups_B = own_B if groups_B is None else groups_B
    texts_B = groups_B if texts_B is None else texts_B
    groups_N, texts_N = losses.gather(groups_B), losses.gather(texts_B)
    a_BD, b_ND = F.normalize(a_BD, dim=-1), losses.gather(F.normalize(b_BD, dim=-1))
    if keep_B is not None:
        keep_N = losses.gather(keep_B)
        a_BD, groups_B, texts_B = a_BD[keep_B], groups_B[keep_B], texts_B[keep_B]
        b_ND, groups_N, texts_N = b_ND[keep_N], groups_N[keep_N], texts_N[keep_N]

    def sum_of_rows(a_CD: Tensor, groups_C: Tensor, texts_C: Tensor) -> Tensor:
        logits_CN = scale * a_CD @ b_ND.T + bias
        right_CN = groups_C[:, None] == groups_N
        losses_CN = -F.logsigmoid(torch.where(right_CN, logits_CN, -logits_CN))
        return losses_CN.masked_fill((texts_C[:, None] == texts_N) & ~right_CN, 0).sum()

    return mean_in_parts(sum_of_rows, (a_BD, groups_B, texts_B), len(b_ND))
