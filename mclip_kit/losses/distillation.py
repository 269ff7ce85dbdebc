"""Losses that make a student follow a teacher: its embeddings, or its similarities. Shapes: see `mclip_kit.losses`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit import losses
from mclip_kit.losses.parts import mean_in_parts


def cosine(student_BD: Tensor, teacher_BD: Tensor, keep_B: Tensor | None = None) -> Tensor:
    """One minus the cosine, averaged over rows (torch's CosineEmbeddingLoss; half of BYOL's, arXiv 2006.07733).

    It is D / 2 times `mse` of normalised sides, so its size does not depend on the width.

    Args:
        student_BD, teacher_BD: embeddings.
        keep_B: bool; other rows are ignored. If no row is kept, the loss is 0. Processes are weighted as in `mse`.
    Returns:
        A scalar.

    Example:
        >>> round(float(cosine(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]]))), 4)
        0.2929
    """
    return student_BD.shape[-1] / 2 * losses.mse(student_BD, teacher_BD, "both", keep_B)


def kl(
    student_BD: Tensor,
    teacher_BD: Tensor,
    other_BD: Tensor,
    scale: Tensor | float,
    keep_B: Tensor | None = None,
) -> Tensor:
    """KL divergence of the student's distribution over the batch from the teacher's (CLIP-KD's contrastive relational
    distillation, arXiv 2307.12732).

    A row's distribution is the softmax of scale * cosine with all rows of the other side. The teacher's rows and the
    student's are compared with the same other side, which is the picture, or, without pictures, the teacher's text
    itself; and the other side's rows with theirs. The loss is the mean of both directions.

    Args:
        student_BD, teacher_BD, other_BD: embeddings, as many in every process; they are L2-normalised here. The
            teacher's distribution is a constant: it gets no gradient.
        scale: factor of the cosines, one over the temperature, of both.
        keep_B: bool; other rows are ignored. If no row is kept, the loss is 0.
    Returns:
        A scalar. Its mean over processes is the loss of all rows, and the mean of its gradients is their gradient.

    Example:
        >>> student_BD, teacher_BD = torch.eye(2), torch.ones(2, 2)  # the teacher cannot tell the rows apart
        >>> round(float(kl(student_BD, teacher_BD, torch.eye(2), 1.0)), 4)
        0.1201
    """
    sides = [F.normalize(side, dim=-1) for side in (student_BD, teacher_BD.detach(), other_BD)]
    whole_N3D = losses.gather(torch.stack(sides, 1))  # at once: one exchange of gradients
    own_B3D = torch.stack(sides, 1)
    if keep_B is not None:
        own_B3D, whole_N3D = own_B3D[keep_B], whole_N3D[losses.gather(keep_B)]
    student_ND, teacher_ND, other_ND = whole_N3D.unbind(1)

    def sum_of_rows(own_C3D: Tensor) -> Tensor:
        student_CD, teacher_CD, other_CD = own_C3D.unbind(1)
        fixed_CD, fixed_ND = other_CD.detach(), other_ND.detach()
        texts = _divergence(scale * student_CD @ other_ND.T, scale * teacher_CD @ fixed_ND.T)
        others = _divergence(scale * other_CD @ student_ND.T, scale * fixed_CD @ teacher_ND.T)
        return (texts + others) / 2

    return mean_in_parts(sum_of_rows, (own_B3D,), len(whole_N3D))


def _divergence(student_CN: Tensor, teacher_CN: Tensor) -> Tensor:
    """The sum over rows of KL(teacher, student), of logits."""
    logs = student_CN.log_softmax(1), teacher_CN.log_softmax(1)
    return F.kl_div(*logs, reduction="sum", log_target=True)


def relational(student_BD: Tensor, teacher_BD: Tensor, keep_B: Tensor | None = None) -> Tensor:
    """Mean squared difference of the cosines within the student's batch from those within the teacher's (relational
    knowledge distillation, arXiv 1904.05068, equation 2, with the cosine as relation; as similarity-preserving
    distillation, arXiv 1907.09682, which normalises rows of the matrix instead). M2M's released code trains with the
    same term and calls it KL (arXiv 2601.10096).

    It does not change if all rows are rotated, so alone it does not bring a student into the teacher's space.

    Args:
        student_BD, teacher_BD: embeddings, as many in every process; they may differ in width.
        keep_B: bool; other rows are ignored. If no row is kept, the loss is 0.
    Returns:
        A scalar, the mean over all pairs. Its mean over processes is the loss of all rows, and the mean of its
        gradients is their gradient.

    Example:
        >>> student_BD, teacher_BD = torch.eye(2), torch.ones(2, 2)
        >>> float(relational(student_BD, teacher_BD))  # 0 and 1 off the diagonal
        0.5
    """
    widths = [student_BD.shape[1], teacher_BD.shape[1]]
    own_BD = torch.cat([F.normalize(student_BD, dim=-1), F.normalize(teacher_BD, dim=-1)], 1)
    whole_ND = losses.gather(own_BD)
    if keep_B is not None:
        own_BD, whole_ND = own_BD[keep_B], whole_ND[losses.gather(keep_B)]
    student_ND, teacher_ND = whole_ND.split(widths, 1)

    def sum_of_rows(own_CD: Tensor) -> Tensor:
        student_CD, teacher_CD = own_CD.split(widths, 1)
        return (student_CD @ student_ND.T - teacher_CD @ teacher_ND.T).square().sum() / max(1, len(whole_ND))

    return mean_in_parts(sum_of_rows, (own_BD,), len(whole_ND))
