"""Losses against slow versions written from the papers' formulas, against their peers, and over two processes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from open_clip.loss import ClipLoss
from torch import Tensor

from mclip_kit.losses import contrastive, health, mse
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
    theirs = ClipLoss()(torch.nn.functional.normalize(a_BD), torch.nn.functional.normalize(b_BD), scale)
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
    torch.testing.assert_close(mse(a_BD, b_BD), torch.nn.functional.mse_loss(a_BD, b_BD), rtol=0, atol=0)


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


PROCESSES = 2
KEPT = {  # of rows 0, 2, 4, 6 (first process) and 1, 3, 5, 7 (second process)
    "all": [True] * 8,
    "uneven": [True, True, False, True, False, True, True, False],
    "second only": [False, True, False, True, False, True, False, False],
}


LOSSES = ("contrastive", "contrastive-duplicates", "mse")
TERMS = ["contrastive pairs", *(f"{loss} {kept}" for loss in LOSSES for kept in KEPT)]


def term(name: str, rows: slice) -> tuple[Tensor, Tensor]:
    """A loss of some rows, and its gradient for two linear maps that make the embeddings."""
    generator = torch.Generator().manual_seed(3)
    left_NE, right_NE = torch.randn(2, 8, 6, generator=generator)
    weights = torch.randn(2, 6, 4, generator=generator).requires_grad_()
    a_BD, b_BD = left_NE[rows] @ weights[0], right_NE[rows] @ weights[1]
    loss, kept = name.split(maxsplit=1)
    keep_B = torch.tensor(KEPT[kept])[rows] if kept in KEPT else None
    groups_B = torch.tensor(GROUPS)[rows] if kept in KEPT else None
    texts_B = torch.tensor(TEXTS)[rows] if loss.endswith("duplicates") else None
    if loss == "mse":
        value = mse(a_BD, b_BD, "both", keep_B)
    else:
        value = contrastive(a_BD, b_BD, SCALE, groups_B, keep_B, texts_B=texts_B)
    return value.detach(), gradients(value, weights)[0]


def one_process(rank: int, folder: str) -> None:
    """Its share of the rows, dealt out as the loop does; writes the losses and the gradients averaged as DDP does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    found = {}
    for name in TERMS:
        loss, gradient = term(name, slice(rank, None, PROCESSES))
        torch.distributed.all_reduce(gradient)
        found[name] = loss, gradient / PROCESSES
    torch.save(found, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """What each of two processes measured."""
    folder = tmp_path_factory.mktemp("processes")
    start_server()  # of forked processes, with everything imported
    torch.multiprocessing.start_processes(one_process, (str(folder),), PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", [name for name in TERMS if name.startswith("contrastive")])
def test_every_process_has_the_contrastive_loss_of_the_whole_batch(processes, name):
    for found in processes:
        torch.testing.assert_close(found[name][0], term(name, slice(None))[0])


@pytest.mark.parametrize("name", [name for name in TERMS if name.startswith("mse")])
def test_the_mean_of_the_processes_is_the_mse_of_the_whole_batch(processes, name):
    mean = sum(found[name][0] for found in processes) / PROCESSES
    torch.testing.assert_close(mean, term(name, slice(None))[0])


@pytest.mark.parametrize("name", TERMS)
def test_gradients_averaged_over_processes_are_those_of_the_whole_batch(processes, name):
    for found in processes:
        torch.testing.assert_close(found[name][1], term(name, slice(None))[1])


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
