"""Losses on the edges of the triangle: pure functions of embeddings, each with its source.

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
        normalize: `both` L2-normalises the two sides first, so that the loss is (2 - 2 cosine) / D.
        keep_B: bool; the other rows take no part. If none is left, the loss is 0. Processes count by the rows they
            keep, so that the mean over processes is the loss of all rows.
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

    Without groups, or with groups that are all different, it equals open_clip's ClipLoss. With groups, every pair of
    rows of the same group is right, and the log-probability is averaged over a row's right answers (SupCon,
    arXiv 2004.11362, equation 2).

    Args:
        a_BD, b_BD: embeddings; they are L2-normalised here.
        scale: factor of the cosines, one over the temperature.
        groups_B: int64; rows with the same number are positives of each other.
        keep_B: bool; the other rows take no part, neither as questions nor as answers. If none is left, the loss is 0.
        over_positives: `sum` adds up the log-probabilities of a row's right answers instead, as mCLIP's released
            fine-tuning does (ACL 2023): a picture with five captions counts five times as much.
        texts_B: int64; rows with the same number have the same text. A text that stands in another group too is no
            wrong answer there, as nothing tells it apart: such pairs are masked out of the softmax.
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
        right_NN = torch.eye(len(logits_NN), device=logits_NN.device, dtype=logits_NN.dtype)
    else:
        right_NN = (groups_N[:, None] == groups_N[None, :]).to(logits_NN.dtype)
    if texts_N is not None:
        neither_NN = (texts_N[:, None] == texts_N[None, :]) & (right_NN == 0)
        logits_NN = logits_NN.masked_fill(neither_NN, torch.finfo(logits_NN.dtype).min)  # finite: 0 * inf is no number
    if over_positives == "mean":
        right_NN = right_NN / right_NN.sum(1, keepdim=True)
    return (F.cross_entropy(logits_NN, right_NN) + F.cross_entropy(logits_NN.T, right_NN)) / 2


@torch.no_grad()
def health(a_BD: Tensor, b_BD: Tensor, groups_B: Tensor, keep_B: Tensor | None = None) -> dict[str, Tensor]:
    """Two signs that embeddings still tell texts apart, of some rows of this process; a falling loss can hide that.

    Returns:
        `cosine`: the mean cosine of two different rows of `a`: near 1, all texts have one embedding. `matching`: the
        share of rows of `a` that are nearest to a row of `b` in their own group (translation matching).
    """
    rows = slice(None) if keep_B is None else keep_B
    a_ND, b_ND, groups_N = (column[rows][:HEALTH_ROWS] for column in (a_BD.float(), b_BD.float(), groups_B))
    count = len(a_ND)
    if count < 2:  # nothing to tell apart, so nothing is wrong; every process has the same terms
        return {"cosine": a_BD.new_zeros(()).float(), "matching": a_BD.new_ones(()).float()}
    a_ND, b_ND = F.normalize(a_ND, dim=-1), F.normalize(b_ND, dim=-1)
    cosine = (a_ND.sum(0).square().sum() - count) / (count * (count - 1))
    nearest_N = (a_ND @ b_ND.T).argmax(1)
    return {"cosine": cosine, "matching": (groups_N[nearest_N] == groups_N).float().mean()}


def _processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def share(keep_B: Tensor) -> Tensor | float:
    """Rows, or tokens, that this process keeps, over the mean of all processes."""
    if _processes() == 1:
        return 1.0
    kept = keep_B.sum().float()
    whole = kept.clone()
    torch.distributed.all_reduce(whole)
    return kept * _processes() / whole.clamp(min=1)


def _gather(a_BD: Tensor, b_BD: Tensor) -> tuple[Tensor, Tensor]:
    return (a_BD, b_BD) if _processes() == 1 else (_Gather.apply(a_BD), _Gather.apply(b_BD))


class _Gather(torch.autograd.Function):
    """The rows of all processes, in their order; gradients of all processes flow back to the owner of a row.

    torch.distributed.nn's needs all-to-all, which gloo has not where accelerate chose the backend.
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
