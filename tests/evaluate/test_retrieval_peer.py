"""The same embeddings, scored by clip-benchmark and by us: what is the same, and what exactly differs."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mclip_kit.evaluate.ranks import KS, both_ranks
from mclip_kit.evaluate.retrieval import score

peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="the extra `dev` is not installed")
WAYS = {"t2i": "image_retrieval_recall", "i2t": "text_retrieval_recall"}


class Given:
    """Towers that get embeddings as inputs and return them."""

    def encode_image(self, embedding_BD: torch.Tensor) -> torch.Tensor:
        return embedding_BD

    def encode_text(self, embedding_BD: torch.Tensor) -> torch.Tensor:
        return embedding_BD


def theirs(image_GD: np.ndarray, text_QD: np.ndarray, text_images_Q: np.ndarray, ks: tuple[int, ...] = KS) -> dict:
    """clip-benchmark's recalls in percent, under our names; batches of 16 pictures."""
    captions = [np.flatnonzero(text_images_Q == image) for image in range(len(image_GD))]

    def batches() -> Iterator[tuple[torch.Tensor, list]]:
        for start in range(0, len(image_GD), 16):
            yield torch.from_numpy(image_GD[start : start + 16]), captions[start : start + 16]

    def tokenizer(rows: list[int]) -> torch.Tensor:
        return torch.from_numpy(text_QD[rows])

    found = peer.evaluate(Given(), batches(), tokenizer, "cpu", amp=False, recall_k_list=list(ks))
    return {f"{way}_r{k}": 100 * found[f"{name}@{k}"] for way, name in WAYS.items() for k in ks}


def ours(image_GD: np.ndarray, text_QD: np.ndarray, text_images_Q: np.ndarray) -> dict[str, float]:
    result = score(image_GD, text_QD, np.arange(len(image_GD)), text_images_Q, np.full(len(image_GD), "all"))
    return {name: result.scores()[name] for name in (f"{way}_r{k}" for way in WAYS for k in KS)}


def unit(rows_ND: np.ndarray) -> np.ndarray:
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


def learned(images: int, text_images_Q: np.ndarray, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, and captions near their picture."""
    draw = np.random.default_rng(seed)
    image_GD = unit(draw.normal(size=(images, 24)))
    return image_GD, unit(image_GD[text_images_Q] + noise * draw.normal(size=(len(text_images_Q), 24)))


@pytest.mark.parametrize("noise", [0.2, 0.6, 50])
@pytest.mark.parametrize(
    "text_images_Q",
    [np.arange(70), np.repeat(np.arange(70), 5), np.random.default_rng(2).permutation(np.r_[:70, :70, :20])],
    ids=["one caption", "five captions", "one to three, mixed"],
)
def test_recalls_are_those_of_clip_benchmark(text_images_Q, noise):
    image_GD, text_QD = learned(70, text_images_Q, noise, 0)
    expected = theirs(image_GD, text_QD, text_images_Q)
    assert ours(image_GD, text_QD, text_images_Q) == pytest.approx(expected, abs=1e-5)  # theirs are float32


def test_wrong_ties_come_before_the_right_one_with_us_and_anywhere_with_clip_benchmark():
    """Its topk orders equal scores at random: its recall is between ours and that of the best order."""
    draw, text_images_Q = np.random.default_rng(1), np.repeat(np.arange(60), 2)
    image_GD = unit(draw.integers(0, 2, (60, 4)) + np.array([0, 0, 0, 1]))  # a few directions, each of many pictures
    text_QD = image_GD[text_images_Q]
    mine, its = ours(image_GD, text_QD, text_images_Q), theirs(image_GD, text_QD, text_images_Q)
    distance = np.round(text_QD.astype(float) @ image_GD.T.astype(float), 9)
    right = text_images_Q[:, None] == np.arange(60)
    for way, scores, own in (("t2i", distance, right), ("i2t", distance.T, right.T)):
        best = np.where(own, scores, -1).max(1, keepdims=True)
        luckiest = 1 + ((scores > best) & ~own).sum(1)
        for k in KS:
            assert mine[f"{way}_r{k}"] <= its[f"{way}_r{k}"] + 1e-5 <= 100 * (luckiest <= k).mean() + 2e-5
    assert mine != pytest.approx(its, abs=1)


def test_a_collapsed_tower_has_no_hits_with_us_and_chance_or_luck_with_clip_benchmark():
    same, order = np.tile(unit(np.ones((1, 8))), (50, 1)), np.arange(50)
    assert set(ours(same, same, order).values()) == {0.0}
    assert theirs(same, same, order)["t2i_r10"] == pytest.approx(20)


def test_non_finite_numbers_have_no_hits_with_us_and_some_with_clip_benchmark():
    image_GD, order = unit(np.random.default_rng(0).normal(size=(50, 8))), np.arange(50)
    broken = np.full_like(image_GD, np.nan)
    assert set(ours(image_GD, broken, order).values()) == {0.0}
    assert theirs(image_GD, broken, order)["t2i_r10"] == pytest.approx(20)


def test_a_picture_without_a_caption_asks_nothing_with_us_and_is_a_miss_with_clip_benchmark():
    text_images_Q = np.repeat(np.arange(40), 2)
    image_GD, text_QD = learned(50, text_images_Q, 0.4, 0)  # the last ten have none
    mine, its = ours(image_GD, text_QD, text_images_Q), theirs(image_GD, text_QD, text_images_Q)
    for k in KS:
        assert mine[f"t2i_r{k}"] == pytest.approx(its[f"t2i_r{k}"], abs=1e-5)
        assert mine[f"i2t_r{k}"] * 40 / 50 == pytest.approx(its[f"i2t_r{k}"], abs=1e-5)


def test_a_gallery_smaller_than_k_holds_every_answer_with_us_and_is_refused_by_clip_benchmark():
    image_GD, text_QD = learned(6, np.arange(6), 0.1, 0)
    assert ours(image_GD, text_QD, np.arange(6))["t2i_r10"] == 100
    with pytest.raises(RuntimeError, match="out of range"):
        theirs(image_GD, text_QD, np.arange(6))


def test_pictures_that_are_the_same_answer_can_only_raise_the_recalls_of_clip_benchmark():
    text_images_Q = np.repeat(np.arange(60), 2)
    image_GD, text_QD = learned(60, text_images_Q, 0.8, 0)
    t2i_Q, i2t_G = both_ranks(text_QD, image_GD, text_images_Q // 2, np.arange(60) // 2)
    its = theirs(image_GD, text_QD, text_images_Q)
    for way, found in (("t2i", t2i_Q), ("i2t", i2t_G)):
        assert all(100 * (found <= k).mean() >= its[f"{way}_r{k}"] - 1e-5 for k in KS)
