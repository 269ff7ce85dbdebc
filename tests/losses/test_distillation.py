"""Losses that follow a teacher against slow versions from the papers' formulas, and against their peers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_kit.losses import mse
from mclip_kit.losses.distillation import cosine, kl, relational
from tests.losses.test_losses import cosine as slow_cosine
from tests.losses.test_losses import embeddings, gradients

SCALE = 4.0


def rows_of(*sides: Tensor) -> list[np.ndarray]:
    return [side.detach().double().numpy() for side in sides]


def distribution(row: np.ndarray, others: np.ndarray) -> list[float]:
    weights = [math.exp(SCALE * slow_cosine(row, other)) for other in others]
    return [weight / sum(weights) for weight in weights]


def slow_kl(student: np.ndarray, teacher: np.ndarray, other: np.ndarray) -> float:
    """CLIP-KD's equations of contrastive relational distillation: both directions, averaged."""
    total = 0.0
    for i in range(len(other)):
        for own, given in (
            (distribution(student[i], other), distribution(teacher[i], other)),
            (distribution(other[i], student), distribution(other[i], teacher)),
        ):
            total += sum(p * (math.log(p) - math.log(q)) for q, p in zip(own, given, strict=True))
    return total / (2 * len(other))


def slow_relational(student: np.ndarray, teacher: np.ndarray) -> float:
    count = len(student)
    return (
        sum(
            (slow_cosine(student[i], student[j]) - slow_cosine(teacher[i], teacher[j])) ** 2
            for i in range(count)
            for j in range(count)
        )
        / count**2
    )


def test_cosine_is_the_formula_torchs_loss_and_half_the_width_of_mse():
    student_BD, teacher_BD = embeddings()
    expected = np.mean([1 - slow_cosine(s, t) for s, t in zip(*rows_of(student_BD, teacher_BD), strict=True)])
    found = cosine(student_BD, teacher_BD)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found, F.cosine_embedding_loss(student_BD, teacher_BD, torch.ones(8)))
    torch.testing.assert_close(found, mse(student_BD, teacher_BD, "both") * 5 / 2)


def test_kl_is_the_papers_formula():
    student_BD, teacher_BD = embeddings()
    other_BD = embeddings(seed=2)[0]
    expected = slow_kl(*rows_of(student_BD, teacher_BD, other_BD))
    assert kl(student_BD, teacher_BD, other_BD, SCALE).item() == pytest.approx(expected, rel=1e-5)


def test_kl_is_nought_for_a_student_that_is_the_teacher_and_not_for_another():
    student_BD, teacher_BD = embeddings()
    other_BD = embeddings(seed=2)[0]
    assert kl(3 * teacher_BD, teacher_BD, other_BD, SCALE).item() == pytest.approx(0, abs=1e-6)
    assert kl(student_BD, teacher_BD, other_BD, SCALE).item() > 0.1


def test_the_teachers_distribution_gets_no_gradient():
    student_BD, teacher_BD = embeddings()
    other_BD = embeddings(seed=2)[0]
    kl(student_BD, teacher_BD, other_BD, SCALE).backward()
    assert teacher_BD.grad is None
    assert student_BD.grad.any()
    same_BD = kl(teacher_BD, teacher_BD, other_BD, SCALE)  # a student that is the teacher moves nothing
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(same_BD, teacher_BD, other_BD))


def test_relational_is_torchs_error_of_two_matrices_of_cosines():
    student_BD, teacher_BD = embeddings()
    wide_BD = torch.cat([teacher_BD, embeddings(seed=5)[0]], 1)  # widths may differ
    found = relational(student_BD, wide_BD)
    assert found.item() == pytest.approx(slow_relational(*rows_of(student_BD, wide_BD)), rel=1e-5)
    matrices = [F.normalize(side) @ F.normalize(side).T for side in (student_BD, wide_BD)]
    torch.testing.assert_close(found, F.mse_loss(*matrices))
    turned_BD = student_BD @ torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    torch.testing.assert_close(found, relational(turned_BD, wide_BD))


@pytest.mark.parametrize("kept", [[True, False, True, True, False, False, True, True], [True] * 8])
def test_other_rows_are_ignored(kept):
    student_BD, teacher_BD = embeddings()
    keep_B = torch.tensor(kept)
    other_BD = embeddings(seed=2)[0]
    some = [side[keep_B] for side in (student_BD, teacher_BD, other_BD)]
    torch.testing.assert_close(cosine(student_BD, teacher_BD, keep_B), cosine(*some[:2]))
    torch.testing.assert_close(relational(student_BD, teacher_BD, keep_B), relational(*some[:2]))
    torch.testing.assert_close(kl(student_BD, teacher_BD, other_BD, SCALE, keep_B), kl(*some, SCALE))


def test_they_are_those_of_sentence_transformers():
    module = pytest.importorskip("sentence_transformers", reason="the extra `sentence-transformers` is not installed")
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, EmbedDistillLoss

    model = module.SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    student_BD, teacher_BD = embeddings()
    other_BD = embeddings(seed=2)[0]
    peer = EmbedDistillLoss(model, "cosine").compute_loss_from_embeddings([student_BD], [teacher_BD])
    torch.testing.assert_close(cosine(student_BD, teacher_BD), peer)

    def one_way(questions: Tensor, answers: Tensor, given: Tensor) -> Tensor:
        """Each answer is a candidate of every question."""
        scaled = DistillKLDivLoss(model, similarity_fct=lambda a, b: SCALE * F.cosine_similarity(a, b))
        columns = [answer_D.expand_as(questions) for answer_D in answers]
        return scaled.compute_loss_from_embeddings([questions, *columns], given)

    cosines_NN = SCALE * F.normalize(teacher_BD) @ F.normalize(other_BD).T
    both = one_way(student_BD, other_BD, cosines_NN) + one_way(other_BD, student_BD, cosines_NN.T)
    torch.testing.assert_close(kl(student_BD, teacher_BD, other_BD, SCALE), both / 2)
