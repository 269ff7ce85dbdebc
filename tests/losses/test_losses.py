"""Losses against slow versions written from the papers' formulas, against their peers, and over several processes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from mclip_kit import losses
from mclip_kit.losses import contrastive, distillation, health, mse
from mclip_kit.losses.sigmoid import sigmoid
from tests.processes import start_server

SCALE = 12.0
GROUPS = [0, 1, 1, 2, 0, 3, 1, 4]
TEXTS = [10, 11, 12, 10, 13, 11, 12, 14]  # 10 and 11 stand in two groups each, 12 twice in one


def embeddings(rows: int = 8, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two unnormalised leaves that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    a_BD, b_BD = (3 * torch.randn(2, rows, width, generator=generator)).unbind()
    return a_BD.clone().requires_grad_(), b_BD.clone().requires_grad_()


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True)) / math.sqrt(
        sum(x * x for x in left) * sum(y * y for y in right)
    )


def slow_infonce(
    questions: np.ndarray,
    answers: np.ndarray,
    scale: float,
    groups: list[int],
    summed: bool = False,
    texts: list[int] | None = None,
) -> float:
    """SupCon, equation 2, one direction: the mean over right answers of -log softmax, averaged over questions.

    What has a question's text without being right is not among its answers.
    """
    total = 0.0
    for i, question in enumerate(questions):
        neither = [texts is not None and texts[j] == texts[i] and groups[j] != groups[i] for j in range(len(answers))]
        exponentials = [
            0 if left_out else math.exp(scale * cosine(question, answer))
            for answer, left_out in zip(answers, neither, strict=True)
        ]
        right = [j for j in range(len(answers)) if groups[j] == groups[i]]
        logarithms = sum(math.log(exponentials[j] / sum(exponentials)) for j in right)
        total -= logarithms if summed else logarithms / len(right)
    return total / len(questions)


def slow_contrastive(
    a: Tensor, b: Tensor, scale: float, groups: list[int], summed: bool = False, texts: list[int] | None = None
) -> float:
    left, right = a.detach().double().numpy(), b.detach().double().numpy()
    how = scale, groups, summed, texts
    return (slow_infonce(left, right, *how) + slow_infonce(right, left, *how)) / 2


def slow_mse(a: Tensor, b: Tensor) -> float:
    left, right = a.detach().double().numpy(), b.detach().double().numpy()
    squares = [(x - y) ** 2 for row, other in zip(left, right, strict=True) for x, y in zip(row, other, strict=True)]
    return sum(squares) / len(squares)


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def check_nought(loss: Tensor, *leaves: Tensor) -> None:
    """The loss is 0, can be stepped through, and every side that learns gets a gradient of zeros."""
    loss.backward()
    assert loss.item() == 0
    for leaf in leaves:
        if leaf.requires_grad:
            assert leaf.grad is not None
            assert not leaf.grad.any()


@pytest.mark.parametrize("groups", [list(range(8)), GROUPS, [7] * 8], ids=["all different", "some equal", "all equal"])
def test_contrastive_is_the_papers_formula(groups):
    a_BD, b_BD = embeddings()
    expected = slow_contrastive(a_BD, b_BD, SCALE, groups)
    assert contrastive(a_BD, b_BD, SCALE, torch.tensor(groups)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [list(range(8)), GROUPS, [7] * 8], ids=["all different", "some equal", "all equal"])
def test_contrastive_may_sum_over_right_answers(groups):
    a_BD, b_BD = embeddings()
    expected = slow_contrastive(a_BD, b_BD, SCALE, groups, summed=True)
    found = contrastive(a_BD, b_BD, SCALE, torch.tensor(groups), over_positives="sum")
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("summed", [False, True], ids=["mean", "sum"])
@pytest.mark.parametrize("groups", [list(range(8)), GROUPS], ids=["pairs", "groups"])
def test_a_text_of_two_groups_is_no_wrong_answer(groups, summed):
    a_BD, b_BD = embeddings()
    given = None if groups == list(range(8)) else torch.tensor(groups)
    over = "sum" if summed else "mean"
    found = contrastive(a_BD, b_BD, SCALE, given, over_positives=over, texts_B=torch.tensor(TEXTS))
    assert found.item() == pytest.approx(slow_contrastive(a_BD, b_BD, SCALE, groups, summed, TEXTS), rel=1e-5)
    assert found.item() != pytest.approx(slow_contrastive(a_BD, b_BD, SCALE, groups, summed), rel=1e-4)
    assert all(torch.isfinite(gradient_BD).all() for gradient_BD in gradients(found, a_BD, b_BD))


def test_masked_rows_do_not_push_each_other():
    a_BD, b_BD = embeddings(2)
    alike = contrastive(a_BD, b_BD, SCALE, torch.tensor([0, 1]), texts_B=torch.tensor([5, 5]))
    assert alike.item() == 0
    assert not any(gradient_BD.any() for gradient_BD in gradients(alike, a_BD, b_BD))


def test_masked_rows_may_be_dropped_rows():
    a_BD, b_BD = embeddings()
    groups_B, texts_B = torch.tensor(GROUPS), torch.tensor(TEXTS)
    keep_B = torch.tensor([True, False, True, True, False, True, True, True])
    dropped = contrastive(a_BD, b_BD, SCALE, groups_B, keep_B, texts_B=texts_B)
    kept = a_BD[keep_B], b_BD[keep_B], SCALE, groups_B[keep_B]
    torch.testing.assert_close(dropped, contrastive(*kept, texts_B=texts_B[keep_B]))


def test_contrastive_without_groups_has_one_right_answer_a_row():
    a_BD, b_BD = embeddings()
    expected = slow_contrastive(a_BD, b_BD, SCALE, list(range(8)))
    assert contrastive(a_BD, b_BD, SCALE).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("groups", [None, torch.tensor([5, 3, 8, 1, 0, 2, 9, 4])], ids=["none", "all different"])
def test_contrastive_is_open_clips_loss_with_its_gradients(groups):
    a_BD, b_BD = embeddings()
    scale = torch.tensor(SCALE, requires_grad=True)
    ours = contrastive(a_BD, b_BD, scale, groups)
    theirs = ClipLoss()(F.normalize(a_BD), F.normalize(b_BD), scale)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, a_BD, b_BD, scale), gradients(theirs, a_BD, b_BD, scale))


def test_contrastive_is_the_same_for_both_orders_of_its_sides():
    a_BD, b_BD = embeddings()
    groups_B = torch.tensor(GROUPS)
    torch.testing.assert_close(contrastive(a_BD, b_BD, SCALE, groups_B), contrastive(b_BD, a_BD, SCALE, groups_B))


def test_contrastive_ignores_the_length_of_embeddings():
    a_BD, b_BD = embeddings()
    torch.testing.assert_close(contrastive(7 * a_BD, b_BD / 3, SCALE), contrastive(a_BD, b_BD, SCALE))


@pytest.mark.parametrize("groups", [None, torch.tensor(GROUPS)], ids=["pairs", "groups"])
def test_contrastive_drops_other_rows_as_questions_and_as_answers(groups):
    a_BD, b_BD = embeddings()
    keep_B = torch.tensor([True, False, True, True, False, False, True, True])
    dropped = contrastive(a_BD, b_BD, SCALE, groups, keep_B)
    subset = contrastive(a_BD[keep_B], b_BD[keep_B], SCALE, None if groups is None else groups[keep_B])
    torch.testing.assert_close(dropped, subset)
    for gradient_BD in gradients(dropped, a_BD, b_BD):
        assert not gradient_BD[~keep_B].any()
        assert gradient_BD[keep_B].any(1).all()


@pytest.mark.parametrize("learner", ["left", "right", "both"])
def test_contrastive_of_no_rows_is_nought_with_zero_gradients(learner):
    a_BD, b_BD = embeddings()
    a_BD.requires_grad_(learner != "right")
    b_BD.requires_grad_(learner != "left")
    loss = contrastive(a_BD, b_BD, SCALE, torch.tensor(GROUPS), torch.zeros(8, dtype=torch.bool))
    check_nought(loss, a_BD, b_BD)


def test_mse_is_the_mean_over_rows_and_dimensions():
    a_BD, b_BD = embeddings()
    assert mse(a_BD, b_BD).item() == pytest.approx(slow_mse(a_BD, b_BD), rel=1e-6)


def test_mse_is_torchs():
    a_BD, b_BD = embeddings()
    torch.testing.assert_close(mse(a_BD, b_BD), F.mse_loss(a_BD, b_BD), rtol=0, atol=0)


def test_mse_of_normalised_sides_is_two_less_twice_the_cosine():
    a_BD, b_BD = embeddings()
    rows = zip(a_BD.detach().double().numpy(), b_BD.detach().double().numpy(), strict=True)
    expected = np.mean([(2 - 2 * cosine(left, right)) / 5 for left, right in rows])
    assert mse(a_BD, b_BD, "both").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalize", ["none", "both"])
def test_mse_drops_other_rows(normalize):
    a_BD, b_BD = embeddings()
    keep_B = torch.tensor([False, True, True, False, False, True, False, False])
    dropped = mse(a_BD, b_BD, normalize, keep_B)
    torch.testing.assert_close(dropped, mse(a_BD[keep_B], b_BD[keep_B], normalize))
    assert not gradients(dropped, a_BD)[0][~keep_B].any()


@pytest.mark.parametrize("learner", ["student", "teacher", "both"])
def test_mse_of_no_rows_is_nought_with_zero_gradients(learner):
    student_BD, teacher_BD = embeddings()
    student_BD.requires_grad_(learner != "teacher")
    teacher_BD.requires_grad_(learner != "student")
    loss = mse(student_BD, teacher_BD, keep_B=torch.zeros(8, dtype=torch.bool))
    check_nought(loss, student_BD, teacher_BD)


def whole_matrix(
    a_ND: Tensor,
    b_ND: Tensor,
    scale: Tensor | float,
    groups_N: Tensor | None = None,
    keep_N: Tensor | None = None,
    over_positives: str = "mean",
    texts_N: Tensor | None = None,
) -> Tensor:
    """The contrastive loss from the logits of all pairs at once, by torch's cross-entropy."""
    groups_N = torch.arange(len(a_ND)) if groups_N is None else groups_N
    texts_N = groups_N if texts_N is None else texts_N
    keep_N = torch.ones(len(a_ND), dtype=torch.bool) if keep_N is None else keep_N
    a_ND, b_ND, groups_N, texts_N = (column[keep_N] for column in (a_ND, b_ND, groups_N, texts_N))
    positive_NN = groups_N[:, None] == groups_N
    logits_NN = scale * F.normalize(a_ND) @ F.normalize(b_ND).T
    logits_NN = logits_NN.masked_fill((texts_N[:, None] == texts_N) & ~positive_NN, torch.finfo().min)
    share_NN = positive_NN.to(logits_NN.dtype)
    if over_positives == "mean":
        share_NN = share_NN / share_NN.sum(1, keepdim=True)
    return (F.cross_entropy(logits_NN, share_NN) + F.cross_entropy(logits_NN.T, share_NN)) / 2


KEPT = {  # of rows 0, 2, 4, 6 (first of two processes) and 1, 3, 5, 7 (second process)
    "all": [True] * 8,
    "uneven": [True, True, False, True, False, True, True, False],
    "second only": [False, True, False, True, False, True, False, False],
}
VARIANTS = {  # positives and duplicates: groups, over_positives, texts
    "pair": (None, "mean", None),
    "image": (GROUPS, "mean", None),
    "image_sum": (GROUPS, "sum", None),
    "pair, mask": (None, "mean", TEXTS),
    "image, mask": (GROUPS, "mean", TEXTS),
    "image_sum, mask": (GROUPS, "sum", TEXTS),
}
OTHERS: dict[str, Callable[..., Tensor]] = {  # of two sides, a fixed teacher, scale, groups, texts, kept rows
    "mse": lambda a, b, teacher, scale, groups, texts, keep: mse(a, b, "both", keep) + 0 * scale,
    "cosine": lambda a, b, teacher, scale, groups, texts, keep: distillation.cosine(a, b, keep) + 0 * scale,
    "kl": lambda a, b, teacher, scale, groups, texts, keep: distillation.kl(a, teacher, b, scale, keep),
    "relational": lambda a, b, teacher, scale, groups, texts, keep: distillation.relational(a, b, keep) + 0 * scale,
    "sigmoid": lambda a, b, teacher, scale, groups, texts, keep: sigmoid(a, b, scale, -scale, keep_B=keep),
    "sigmoid, image": lambda a, b, teacher, scale, groups, texts, keep: sigmoid(a, b, scale, -scale, groups, keep),
    "sigmoid, mask": lambda a, b, teacher, scale, groups, texts, keep: sigmoid(a, b, scale, 1, groups, keep, texts),
}
ROWWISE = ("mse", "cosine")
TERMS = [f"{loss}; {kept}" for loss in (*VARIANTS, *OTHERS) for kept in KEPT]
OF_PAIRS = [name for name in TERMS if name.split("; ")[0] not in ROWWISE]
EVERY_ROW = slice(None)
FEW = 20  # logits at once: of two rows


def term(name: str, rows: slice, contrast: Callable[..., Tensor] = contrastive) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of some rows, its gradient for two linear maps that make the embeddings, and that for the scale."""
    generator = torch.Generator().manual_seed(3)
    left_NE, right_NE = torch.randn(2, 8, 6, generator=generator)
    weights = torch.randn(2, 6, 4, generator=generator).requires_grad_()
    scale = torch.tensor(SCALE, requires_grad=True)
    a_BD, b_BD = left_NE[rows] @ weights[0], right_NE[rows] @ weights[1]
    loss, kept = name.split("; ")
    keep_B = torch.tensor(KEPT[kept])[rows]
    if loss in OTHERS:
        groups_B, texts_B = torch.tensor(GROUPS)[rows], torch.tensor(TEXTS)[rows]
        value = OTHERS[loss](a_BD, b_BD, right_NE[rows, :4], scale, groups_B, texts_B, keep_B)
    else:
        groups, over, texts = VARIANTS[loss]
        groups_B, texts_B = (None if column is None else torch.tensor(column)[rows] for column in (groups, texts))
        value = contrast(a_BD, b_BD, scale, groups_B, keep_B, over, texts_B)
    return value.detach(), *gradients(value, weights, scale)


@pytest.mark.parametrize("logits", [1, FEW, losses.LOGITS])
@pytest.mark.parametrize("name", OF_PAIRS)
def test_rows_in_parts_have_the_loss_and_the_gradients_of_the_whole_matrix(name, logits, monkeypatch):
    whole = term(name, EVERY_ROW, whole_matrix)  # at once: all of the 64 logits are fewer than LOGITS
    monkeypatch.setattr(losses, "LOGITS", logits)
    torch.testing.assert_close(term(name, EVERY_ROW), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits", [FEW, losses.LOGITS])
@pytest.mark.parametrize("name", OTHERS)
def test_gradients_of_other_losses_are_those_of_differences(name, logits, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS", logits)
    leaves = (*embeddings(), torch.tensor(1.5))
    a_BD, b_BD, scale = (leaf.detach().double().requires_grad_() for leaf in leaves)
    teacher_BD, rows = embeddings(seed=4)[0].detach().double(), (torch.tensor(GROUPS), torch.tensor(TEXTS))
    keep_B = torch.tensor(KEPT["uneven"])
    if name == "kl":  # the other side is a constant in the teacher's distribution
        b_BD.requires_grad_(False)
    torch.autograd.gradcheck(lambda a, b, s: OTHERS[name](a, b, teacher_BD, s, *rows, keep_B), (a_BD, b_BD, scale))


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_of_no_rows_are_nought_with_zero_gradients(name):
    a_BD, b_BD = embeddings()
    rows = torch.tensor(GROUPS), torch.tensor(TEXTS), torch.zeros(8, dtype=torch.bool)
    check_nought(OTHERS[name](a_BD, b_BD, a_BD.detach(), torch.tensor(SCALE), *rows), a_BD, b_BD)


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_have_finite_gradients_for_equal_and_for_huge_rows(name):
    rows = torch.tensor(GROUPS), torch.tensor(TEXTS), None
    for size in (1.0, 1e15):
        a_BD, b_BD = (size * torch.ones(8, 5)).requires_grad_(), torch.ones(8, 5).requires_grad_()
        loss = OTHERS[name](a_BD, b_BD, b_BD.detach(), torch.tensor(100.0), *rows)
        assert all(torch.isfinite(gradient).all() for gradient in (loss, *gradients(loss, a_BD, b_BD)))


@pytest.mark.parametrize("logits", [FEW, losses.LOGITS])
@pytest.mark.parametrize("learns", [(True, True, True), (False, True, False), (True, False, True)])
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_differences(name, learns, logits, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS", logits)
    groups, over, texts = (torch.tensor(c) if isinstance(c, list) else c for c in VARIANTS[name])
    keep_B = torch.tensor(KEPT["uneven"])
    leaves = (*embeddings(), torch.tensor(SCALE))
    a_BD, b_BD, scale = (leaf.detach().double().requires_grad_(on) for leaf, on in zip(leaves, learns, strict=True))
    torch.autograd.gradcheck(lambda *given: contrastive(*given, groups, keep_B, over, texts), (a_BD, b_BD, scale))


def test_no_part_has_more_logits_than_it_may(monkeypatch):
    monkeypatch.setattr(losses, "LOGITS", 1000)
    sizes = []
    logits = losses._Labels.logits
    monkeypatch.setattr(losses._Labels, "logits", lambda *given: sizes.append(len(given[1])) or logits(*given))
    a_BD, b_BD = embeddings(90)
    contrastive(a_BD, b_BD, SCALE).backward()
    assert sizes == 2 * [*8 * [11], 2]  # forward and backward


def of_pairs(contrast: Callable[..., Tensor], rows: slice, normalized: bool) -> tuple[Tensor, ...]:
    """The loss of pairs of some rows, and its gradients for these rows."""
    leaves = [side_ND.detach()[rows].requires_grad_() for side_ND in embeddings()]
    value = contrast(*(F.normalize(leaf) if normalized else leaf for leaf in leaves), torch.tensor(SCALE))
    return value.detach(), *gradients(value, *leaves)


def one_process(rank: int, folder: str, processes: int) -> None:
    """Its share of the rows, dealt out as the loop does; writes the losses and the gradients averaged as DDP does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
    )
    losses.LOGITS = FEW
    found = {}
    for name in TERMS:
        found[name] = term(name, slice(rank, None, processes))
        for value in found[name]:
            torch.distributed.all_reduce(value)
            value /= processes
    peer = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=processes)
    found["ours"], found["theirs"] = (
        of_pairs(contrast, slice(rank, None, processes), contrast is peer) for contrast in (contrastive, peer)
    )
    torch.save(found, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of some processes measured."""
    folder = tmp_path_factory.mktemp("processes")
    start_server()  # of forked processes, with everything imported
    given = str(folder), request.param
    torch.multiprocessing.start_processes(one_process, given, request.param, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize("name", TERMS)
def test_means_over_processes_are_the_loss_and_the_gradients_of_the_whole_batch(processes, name):
    for found in processes:
        torch.testing.assert_close(found[name], term(name, EVERY_ROW, whole_matrix), rtol=1e-5, atol=1e-5)


def test_each_process_has_open_clips_local_loss(processes):
    for found in processes:
        torch.testing.assert_close(found["ours"], found["theirs"])


def test_health_is_the_mean_cosine_of_different_rows_and_the_share_of_matches():
    draw = np.random.default_rng(3)
    a, b = draw.normal(size=(2, 12, 5))
    groups = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosines = [unit_a[i] @ unit_a[j] for i in range(12) for j in range(12) if i != j]
    nearest = [int(np.argmax(unit_b @ row)) for row in unit_a]
    matches = [groups[i] == groups[j] for i, j in enumerate(nearest)]
    found = health(torch.tensor(a), torch.tensor(b), torch.tensor(groups))
    assert float(found["cosine"]) == pytest.approx(np.mean(cosines), abs=1e-6)
    assert float(found["matching"]) == pytest.approx(np.mean(matches), abs=1e-6)


def test_health_looks_at_kept_rows_alone():
    a = torch.randn(6, 4)
    keep = torch.tensor([True, True, False, True, False, False])
    whole = health(a, a, torch.arange(6), keep)
    assert whole == health(a[keep], a[keep], torch.arange(3))
    assert health(a, a, torch.arange(6), torch.tensor([True] + [False] * 5)) == {"cosine": 0, "matching": 1}
