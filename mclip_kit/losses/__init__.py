"""Losses for edges of the triangle: pure functions of embeddings, each with its source.

Here are mean squared error and InfoNCE, and what losses share over several processes; `sigmoid`, `distillation` and
`matryoshka` have the others.

Shapes: B rows of this process, N rows of all processes, D embedding width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

HEALTH_ROWS = 256
MAX_SCALE = 100.0  # CLIP clamps exp(logit_scale) here (Radford et al. 2021, section 2.5)
LOGITS = 2**21  # that the contrastive loss computes at once: 8 MB of float32, and a few times that in between


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

    Each process compares its own rows of `a` with the rows of `b` of all processes, a few rows at once, and computes
    these logits again for the gradients: no process has the N x N matrix.

    Args:
        a_BD, b_BD: embeddings, as many in every process; they are L2-normalised here.
        scale: factor of the cosines, one over the temperature.
        groups_B: int64; rows with the same number are positives of each other.
        keep_B: bool; other rows are ignored, as queries and as candidates. If no row is kept, the loss is 0.
        over_positives: `sum` adds the log-probabilities of a row's positives, as mCLIP's released fine-tuning does
            (ACL 2023): a picture with five captions counts five times as much.
        texts_B: int64; rows with the same number have the same text. If the same text is in two groups, the pair is
            neither a positive nor a negative: it is masked out of the softmax.
    Returns:
        A scalar. Its mean over processes is the loss of all rows, and the mean of its gradients is their gradient.

    Example:
        >>> a_BD = torch.eye(3)  # the first two rows are of the same picture
        >>> round(float(contrastive(a_BD, a_BD, 10.0, torch.tensor([0, 0, 1]))), 3)
        3.333
    """
    first = rank() * len(a_BD)  # the number of this process's first row among those of all
    own_B = torch.arange(first, first + len(a_BD), device=a_BD.device)
    groups_N = gather(own_B if groups_B is None else groups_B)
    texts_N = None if texts_B is None else gather(texts_B)
    a_BD, b_ND = F.normalize(a_BD, dim=-1), gather(F.normalize(b_BD, dim=-1))
    if keep_B is not None:
        keep_N = gather(keep_B)
        first = int(keep_N[:first].sum())
        a_BD, b_ND, groups_N = a_BD[keep_B], b_ND[keep_N], groups_N[keep_N]
        texts_N = None if texts_N is None else texts_N[keep_N]
    if not len(b_ND):
        return a_BD.sum() + b_ND.sum()
    _, number_N, counts = groups_N.unique(return_inverse=True, return_counts=True)
    positives_N = counts[number_N].to(a_BD.dtype)
    weights_N = positives_N if over_positives == "sum" else torch.ones_like(positives_N)
    labels = _Labels(groups_N, texts_N, weights_N, weights_N / positives_N, first)
    loss: Tensor = _InfoNCE.apply(a_BD, b_ND, torch.as_tensor(scale).to(a_BD), labels)
    return loss


@dataclass(frozen=True)
class _Labels:
    """What the contrastive loss knows of N rows.

    Attributes:
        groups_N, texts_N: numbers of the group and of the text; without texts, nothing is masked.
        weights_N: factor of a row's log-sum-exp.
        shares_N: factor of the logit of each of a row's positives; the same for both rows of a pair.
        first: the number of this process's first row.
    """

    groups_N: Tensor
    texts_N: Tensor | None
    weights_N: Tensor
    shares_N: Tensor
    first: int

    def parts(self, a_BD: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of this process's rows that are compared at once, and the same rows among the N."""
        size = max(1, LOGITS // len(self.groups_N))
        for start in range(0, len(a_BD), size):
            stop = min(start + size, len(a_BD))
            yield slice(start, stop), slice(self.first + start, self.first + stop)

    def logits(self, a_CD: Tensor, b_ND: Tensor, scale: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Logits of some rows, and which are positives; the same text in another group is masked."""
        logits_CN = (scale * a_CD) @ b_ND.T
        positive_CN = self.groups_N[rows, None] == self.groups_N
        if self.texts_N is not None:
            masked_CN = (self.texts_N[rows, None] == self.texts_N) & ~positive_CN
            logits_CN.masked_fill_(masked_CN, torch.finfo(logits_CN.dtype).min)  # finite, because 0 * inf is NaN
        return logits_CN, positive_CN


class _InfoNCE(torch.autograd.Function):
    """The contrastive loss of unit vectors: this process's rows of `a` with all rows of `b`, and the other direction.

    With logits z, the loss of a row is weight * logsumexp(z) - share * (the sum of z of its positives), and its
    gradient with respect to z is weight * softmax(z) - share * (1 where positive). The same holds for a column, whose
    log-sum-exp is over the rows of all processes.
    """

    @staticmethod
    def forward(ctx: Any, a_BD: Tensor, b_ND: Tensor, scale: Tensor, labels: _Labels) -> Tensor:
        rows_B, right_B = a_BD.new_empty(2, len(a_BD))
        columns_N = a_BD.new_full((len(b_ND),), -torch.inf)
        for part, rows in labels.parts(a_BD):
            logits_CN, positive_CN = labels.logits(a_BD[part], b_ND, scale, rows)
            rows_B[part] = logits_CN.logsumexp(1)
            columns_N = torch.logaddexp(columns_N, logits_CN.logsumexp(0))
            right_B[part] = labels.shares_N[rows] * logits_CN.mul_(positive_CN).sum(1)
        columns_N = gather(columns_N[None]).logsumexp(0)
        ctx.save_for_backward(a_BD, b_ND, scale, rows_B, columns_N)
        ctx.labels = labels
        own = slice(labels.first, labels.first + len(a_BD))
        both_B = labels.weights_N[own] * (rows_B + columns_N[own]) - 2 * right_B
        return processes() * both_B.sum() / (2 * len(b_ND))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        a_BD, b_ND, scale, rows_B, columns_N = ctx.saved_tensors
        labels, (wants_a, wants_b, wants_scale, _) = ctx.labels, ctx.needs_input_grad
        slope = slope * processes() / (2 * len(b_ND))
        da_BD, db_ND, dscale = torch.zeros_like(a_BD), torch.zeros_like(b_ND), torch.zeros_like(scale)
        for part, rows in labels.parts(a_BD):
            logits_CN, positive_CN = labels.logits(a_BD[part], b_ND, scale, rows)
            slopes_CN = (logits_CN - rows_B[part, None]).exp_().mul_(labels.weights_N[rows, None])
            slopes_CN += (logits_CN - columns_N).exp_().mul_(labels.weights_N)
            slopes_CN -= positive_CN * (2 * labels.shares_N[rows, None])
            slopes_CN *= slope
            if wants_a:
                da_BD[part] = scale * (slopes_CN @ b_ND)
            if wants_b:
                db_ND.addmm_(slopes_CN.T, scale * a_BD[part])
            if wants_scale:
                dscale += (slopes_CN * logits_CN).sum() / scale
        return da_BD, db_ND, dscale, None


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


def processes() -> int:
    """How many processes share a batch."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def share(keep_B: Tensor) -> Tensor | float:
    """The number of kept rows (or tokens) of this process, divided by the mean over all processes."""
    if processes() == 1:
        return 1.0
    kept = keep_B.sum().float()
    whole = kept.clone()
    torch.distributed.all_reduce(whole)
    return kept * processes() / whole.clamp(min=1)


def rank() -> int:
    """The number of this process."""
    return 0 if processes() == 1 else torch.distributed.get_rank()


def gather(rows_BD: Tensor) -> Tensor:
    """The rows of all processes (N, D), with gradients."""
    gathered: Tensor = rows_BD if processes() == 1 else _Gather.apply(rows_BD)
    return gathered


class _Gather(torch.autograd.Function):
    """The rows of all processes, in their order; the process of a row gets its gradients from all processes.

    torch.distributed.nn.all_gather is not used: its backward needs all-to-all, which the backend gloo lacks.
    """

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows_BD) for _ in range(processes())]
        torch.distributed.all_gather(gathered, rows_BD.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole_ND = gradients[0].contiguous()
        torch.distributed.all_reduce(whole_ND)
        return whole_ND.chunk(processes())[rank()]
