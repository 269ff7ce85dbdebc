"""Losses for edges of the triangle: pure functions of embeddings, each with its source.

Shapes: B rows of this process, N rows of all processes, D embedding width.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

HEALTH_ROWS = 256
MAX_SCALE = 100.0  # CLIP clamps exp(logit_scale) here (Radford et al. 2021, section 2.5)


def mse(
    student_BD: Tensor,
    teacher_BD: Tensor,
    normalize: Literal["none", "both"] = "none",
    keep_B: Tensor | None = None,
) -> Tensor:
    """Mean squared error over rows and dimensions: teacher learning (AltCLIP, arXiv 2211.06679, section 3.1).

    Args:
        student_BD, teacher_BD: embeddings.
        normalize: `both` L2-normalises both sides first; the loss is then (2 - 2 cosine) / D.
        keep_B: bool; other rows are ignored. If no row is kept, the loss is 0. Each process is weighted by the number
            of its kept rows, so that the mean over processes is the loss of all rows.
    Returns:
        A scalar.
    """
    counted: Tensor | float = 1.0
    if keep_B is not None:
        counted = share(keep_B)
        student_BD, teacher_BD = student_BD[keep_B], teacher_BD[keep_B]
        if not len(student_BD):
            return student_BD.sum() + teacher_BD.sum()
    if normalize == "both":
        student_BD, teacher_BD = F.normalize(student_BD, dim=-1), F.normalize(teacher_BD, dim=-1)
    return counted * F.mse_loss(student_BD, teacher_BD)


def contrastive(
    a_BD: Tensor,
    b_BD: Tensor,
    scale: Tensor | float,
    groups_B: Tensor | None = None,
    keep_B: Tensor | None = None,
    over_positives: Literal["mean", "sum"] = "mean",
    texts_B: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE over the rows of all processes (CLIP, arXiv 2103.00020, figure 3).

    Without groups, or if all groups differ, it equals open_clip's ClipLoss. With groups, all pairs of rows in the same
    group are positives, and the log-probability is averaged over a row's positives (SupCon, arXiv 2004.11362,
    equation 2).

    Args:
        a_BD, b_BD: embeddings; they are L2-normalised here.
        scale: factor of the cosines, one over the temperature.
        groups_B: int64; rows with the same number are positives of each other.
        keep_B: bool; other rows are ignored, as queries and as candidates. If no row is kept, the loss is 0.
        over_positives: `sum` adds the log-probabilities of a row's positives, as mCLIP's released fine-tuning does
            (ACL 2023): a picture with five captions counts five times as much.
        texts_B: int64; rows with the same number have the same text. If the same text is in two groups, the pair is
            neither a positive nor a negative: it is masked out of the softmax.
    Returns:
        A scalar.
    """
    a_ND, b_ND = _gather(F.normalize(a_BD, dim=-1), F.normalize(b_BD, dim=-1))
    groups_N = None if groups_B is None else _gather_rows(groups_B)
    texts_N = None if texts_B is None else _gather_rows(texts_B)
    if keep_B is not None:
        keep_N = _gather_rows(keep_B)
        a_ND, b_ND = a_ND[keep_N], b_ND[keep_N]
        groups_N = None if groups_N is None else groups_N[keep_N]
        texts_N = None if texts_N is None else texts_N[keep_N]
        if not len(a_ND):
            return a_ND.sum() + b_ND.sum()
    logits_NN = scale * a_ND @ b_ND.T
    if groups_N is None:
        positive_NN = torch.eye(len(logits_NN), device=logits_NN.device, dtype=logits_NN.dtype)
    else:
        positive_NN = (groups_N[:, None] == groups_N[None, :]).to(logits_NN.dtype)
    if texts_N is not None:
        masked_NN = (texts_N[:, None] == texts_N[None, :]) & (positive_NN == 0)
        logits_NN = logits_NN.masked_fill(masked_NN, torch.finfo(logits_NN.dtype).min)  # finite, because 0 * inf is NaN
    if over_positives == "mean":
        positive_NN = positive_NN / positive_NN.sum(1, keepdim=True)
    return (F.cross_entropy(logits_NN, positive_NN) + F.cross_entropy(logits_NN.T, positive_NN)) / 2


@torch.no_grad()
def health(a_BD: Tensor, b_BD: Tensor, groups_B: Tensor, keep_B: Tensor | None = None) -> dict[str, Tensor]:
    """Two signs of collapse, from the first rows of this process; a falling loss can hide a collapse.

    Args:
        a_BD, b_BD: embeddings.
        groups_B: int64; rows with the same number belong together.
        keep_B: bool; other rows are ignored.
    Returns:
        `cosine`: the mean cosine of two different rows of `a`; near 1, all texts have the same embedding.
        `matching`: the share of rows of `a` whose nearest row of `b` is in the same group (translation matching).
    """
    rows = slice(None) if keep_B is None else keep_B
    a_ND, b_ND, groups_N = (column[rows][:HEALTH_ROWS] for column in (a_BD.float(), b_BD.float(), groups_B))
    count = len(a_ND)
    if count < 2:  # one row cannot collapse; every process returns the same terms
        return {"cosine": a_BD.new_zeros(()).float(), "matching": a_BD.new_ones(()).float()}
    a_ND, b_ND = F.normalize(a_ND, dim=-1), F.normalize(b_ND, dim=-1)
    cosine = (a_ND.sum(0).square().sum() - count) / (count * (count - 1))
    nearest_N = (a_ND @ b_ND.T).argmax(1)
    return {"cosine": cosine, "matching": (groups_N[nearest_N] == groups_N).float().mean()}


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def share(keep_B: Tensor) -> Tensor | float:
    """The number of kept rows (or tokens) of this process, divided by the mean over all processes."""
    if _processes() == 1:
        return 1.0
    kept = keep_B.sum().float()
    whole = kept.clone()
    torch.distributed.all_reduce(whole)
    return kept * _processes() / whole.clamp(min=1)


def _gather(a_BD: Tensor, b_BD: Tensor) -> tuple[Tensor, Tensor]:
    return (a_BD, b_BD) if _processes() == 1 else (_Gather.apply(a_BD), _Gather.apply(b_BD))


class _Gather(torch.autograd.Function):
    """The rows of all processes, in their order; the process of a row gets its gradients from all processes.

    torch.distributed.nn.all_gather is not used: its backward needs all-to-all, which the backend gloo lacks.
    """

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows_BD) for _ in range(_processes())]
        torch.distributed.all_gather(gathered, rows_BD.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole_ND = gradients[0].contiguous()
        torch.distributed.all_reduce(whole_ND)
        return whole_ND.chunk(_processes())[torch.distributed.get_rank()]


def _gather_rows(column_B: Tensor) -> Tensor:
    if _processes() == 1:
        return column_B
    gathered = [torch.empty_like(column_B) for _ in range(_processes())]
    torch.distributed.all_gather(gathered, column_B)
    return torch.cat(gathered)
