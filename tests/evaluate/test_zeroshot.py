"""Zero-shot classification: against clip-benchmark's code, and where scores would be too high."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import overridden, parse
from mclip_kit.data.corpora import Corpus, declaration
from mclip_kit.data.corpora.source import Source
from mclip_kit.data.prepare import adhoc
from mclip_kit.data.prepare.prepare import prepare
from mclip_kit.data.transforms import to_pixels
from mclip_kit.errors import DataError
from mclip_kit.evaluate.base import Request
from mclip_kit.evaluate.checks import open_data
from mclip_kit.evaluate.class_names import Prompts
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.zeroshot import Labelled, class_embeddings, evaluate, read_labelled, score
from mclip_kit.features.cache import FeatureCache
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import build_model
from tests import tiny

COLOURS = sorted(tiny.COLOURS)
PROMPTS = {
    "en": Prompts({name: name for name in COLOURS}, ["{c} square", "a {c} square, shade 2", "{c}"]),
    "de": Prompts({name: tiny.COLOURS[name][1] for name in COLOURS}, ["Quadrat {c}", "{c} links, Ton 1"]),
}
NAMES = ("acc1", "acc5", "mean_per_class_recall")


@pytest.fixture(scope="module")
def model(squares: Path) -> MultilingualClip:
    """Random towers: their scores do not matter here."""
    torch.manual_seed(3)
    return build_model(parse(tiny.recipe(squares), Recipe, "tiny")).eval()


@pytest.fixture(scope="module")
def pictures(colours: Path) -> Labelled:
    return read_labelled(colours, "test")


class AsOpenClip(torch.nn.Module):
    """A model as clip-benchmark takes one: ids in, embeddings out."""

    def __init__(self, model: MultilingualClip, tower: str) -> None:
        super().__init__()
        self.model, self.tower = model, tower

    def tokenize(self, texts: list[str]) -> Tensor:
        if self.tower == "teacher":
            return self.model.teacher_tokens(texts)
        return self.model.encoder.pad(self.model.student_tokens(texts))[0]

    def encode_text(self, ids_BT: Tensor) -> Tensor:
        if self.tower == "teacher":
            return self.model.clip_projector(self.model.teacher_text(ids_BT))
        mask_BT = (ids_BT != self.model.encoder.tokenizer.pad).long()
        return self.model.projector(self.model.encoder(ids_BT, mask_BT), mask_BT)

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        return self.model.clip_projector(self.model.image(pixels_BCHW))


class Batches:
    """A data loader as clip-benchmark takes one."""

    def __init__(self, inputs_N: Tensor, labels_N: Tensor, classes: list[str]) -> None:
        self.dataset, self.inputs_N, self.labels_N = self, inputs_N, labels_N
        self.classes = classes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.inputs_N.split(32), self.labels_N.split(32), strict=True))


@pytest.fixture
def clip_benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its own code; version 1.6.2 asks for float() of an array of one number, which NumPy 2.4 refuses."""
    module = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="clip-benchmark comes with the extra `dev` only"
    )
    one = lambda value: value.item() if isinstance(value, np.ndarray) else float(value)  # noqa: E731
    monkeypatch.setattr(module, "float", one, raising=False)
    return module


@pytest.mark.parametrize(("tower", "language"), [("teacher", "en"), ("student", "en"), ("student", "de")])
def test_a_model_scores_as_in_clip_benchmark(model, pictures, clip_benchmark, tower, language):
    teacher, students = evaluate(model, pictures, PROMPTS, PROMPTS["en"])
    ours = (teacher if tower == "teacher" else students[language]).scores()
    captions = pictures.captions
    pixels_NSSC = np.stack([np.asarray(captions.picture(image)) for image in range(len(captions.names))])
    clip, prompts = model.clip[0], PROMPTS[language]
    labels_N = torch.tensor([COLOURS.index(name) for name in captions.strata])
    batches = Batches(to_pixels(pixels_NSSC, clip.transform, clip.preprocess), labels_N, COLOURS)
    adapter, names = AsOpenClip(model, tower), list(prompts.names.values())
    theirs = clip_benchmark.evaluate(adapter, batches, adapter.tokenize, names, prompts.templates, "cpu", amp=False)
    assert ours == pytest.approx({name: theirs[name] for name in NAMES})
    weights_DC = clip_benchmark.zero_shot_classifier(adapter, adapter.tokenize, names, prompts.templates, "cpu", False)
    encode = getattr(Embedder(model, FeatureCache()), tower)
    np.testing.assert_allclose(class_embeddings(encode, prompts), weights_DC.T.numpy(), atol=1e-5)


class Known(torch.nn.Module):
    """Embeddings that are given: of pictures as they are, of texts by number."""

    def __init__(self, text_MD: Tensor) -> None:
        super().__init__()
        self.text_MD = text_MD

    def encode_image(self, image_BD: Tensor) -> Tensor:
        return image_BD

    def encode_text(self, ids_B: Tensor) -> Tensor:
        return self.text_MD[ids_B]


@pytest.mark.parametrize("classes", [3, 5, 40])
def test_the_same_embeddings_score_as_in_clip_benchmark(clip_benchmark, classes):
    """Classes of uneven sizes, one without pictures, three templates; about half of the pictures are right."""
    draw = torch.Generator().manual_seed(classes)
    text_MD = F.normalize(torch.randn(classes * 3, 16, generator=draw), dim=1)
    share = torch.arange(classes).float()  # the first class has none
    labels_N = torch.multinomial(share, 500, replacement=True, generator=draw)
    image_ND = text_MD.view(classes, 3, 16).mean(1)[labels_N] + 0.25 * torch.randn(500, 16, generator=draw)
    image_ND = F.normalize(image_ND, dim=1)
    names = [str(number) for number in range(classes)]
    encode = lambda texts: text_MD[[int(text.split()[0]) * 3 + int(text.split()[1]) for text in texts]].numpy()  # noqa: E731
    templates = ["{c} 0", "{c} 1", "{c} 2"]
    class_CD = class_embeddings(encode, Prompts({name: name for name in names}, templates))
    found = score(image_ND.numpy(), class_CD, labels_N.numpy()).scores()
    ids = lambda texts: torch.tensor([int(text.split()[0]) * 3 + int(text.split()[1]) for text in texts])  # noqa: E731
    batches = Batches(image_ND, labels_N, names)
    expected = clip_benchmark.evaluate(Known(text_MD), batches, ids, names, templates, "cpu", amp=False)
    assert found == pytest.approx({name: expected[name] for name in NAMES}, nan_ok=True)
    assert 0.2 < found["acc1"] < 0.999
    assert np.isnan(found["acc5"]) == (classes < 5)


LABELS = np.repeat(np.arange(6), 10)


def test_constant_embeddings_score_nothing():
    image_ND, class_CD = np.ones((60, 4), np.float32) / 2, np.ones((6, 4), np.float32) / 2
    assert score(image_ND, class_CD, LABELS).scores() == {"acc1": 0, "acc5": 0, "mean_per_class_recall": 0}
    varied_CD = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    found = score(image_ND, varied_CD, LABELS).scores()
    assert (found["acc1"], found["mean_per_class_recall"]) == pytest.approx((1 / 6, 1 / 6))


@pytest.mark.parametrize("of", ["pictures", "classes", "own class"])
def test_non_finite_embeddings_count_as_misses(of):
    image_ND, class_CD = np.eye(6, dtype=np.float32)[LABELS], np.eye(6, dtype=np.float32)
    assert score(image_ND, class_CD, LABELS).scores()["acc1"] == 1
    if of == "pictures":
        image_ND = np.full_like(image_ND, np.nan)
    elif of == "classes":
        class_CD = np.full_like(class_CD, np.nan)
    else:
        class_CD = np.where(np.arange(6)[:, None] == 2, np.nan, class_CD)
        image_ND, labels = image_ND[LABELS == 2], LABELS[LABELS == 2]
        assert score(image_ND, class_CD, labels).scores()["acc1"] == 0
        return
    assert score(image_ND, class_CD, LABELS).scores() == {"acc1": 0, "acc5": 0, "mean_per_class_recall": 0}


def test_prompts_that_cancel_out_count_as_misses():
    encode = lambda texts: np.array([[1, 0], [-1, 0]] * (len(texts) // 2), np.float32)  # noqa: E731
    class_CD = class_embeddings(encode, Prompts({"a": "a", "b": "b"}, ["{}", "not {}"]))
    assert np.isnan(class_CD).all()
    assert score(np.eye(2, dtype=np.float32), class_CD, np.arange(2)).scores()["acc1"] == 0


def test_class_embeddings_do_not_depend_on_how_many_are_made_at_once(model, monkeypatch):
    embed = Embedder(model, FeatureCache())
    whole_CD = class_embeddings(embed.student, PROMPTS["en"])
    by_hand_CD = np.stack([embed.student(PROMPTS["en"].texts()[3 * c : 3 * c + 3]).mean(0) for c in range(6)])
    by_hand_CD /= np.linalg.norm(by_hand_CD, axis=1, keepdims=True)
    monkeypatch.setattr("mclip_kit.evaluate.zeroshot.TEXTS", 7)
    np.testing.assert_allclose(class_embeddings(embed.student, PROMPTS["en"]), whole_CD, atol=1e-6)
    np.testing.assert_allclose(by_hand_CD, whole_CD, atol=1e-6)


def test_classes_of_one_name_tie_and_are_counted(model, pictures):
    same = Prompts(dict.fromkeys(COLOURS, "square"), ["a {c}"])
    teacher, students = evaluate(model, pictures, {"de": same})
    assert teacher is None
    assert students["de"].shared == 6
    assert students["de"].scores()["acc1"] < 0.5


def test_a_language_that_names_some_classes_is_scored_on_their_pictures(model, pictures):
    two = Prompts({"red": "rot", "blue": "blau"}, ["{}"])
    found = evaluate(model, pictures, {"de": two})[1]["de"]
    assert (found.classes, len(found.ranks_N)) == (2, 32)
    assert np.bincount(found.labels_N).tolist() == [16, 16]


def test_plain_and_prepared_class_folders_are_the_same(colours, tmp_path):
    plain = read_labelled(colours, "test")
    assert (plain.classes, plain.split, len(plain.images_N)) == (COLOURS, "all", 96)
    prepare(declaration("imagenet_a"), tmp_path / "data", source=Source(colours))
    prepared = read_labelled(tmp_path / "data", "test")
    assert (prepared.classes, prepared.split, len(prepared.images_N)) == (COLOURS, "test", 96)
    assert sorted(prepared.captions.names) == sorted(plain.captions.names)
    with pytest.raises(DataError, match="no pictures in split 'valid'; there are test"):
        read_labelled(tmp_path / "data", "valid")
    with pytest.raises(DataError, match="has no splits, so there is no 'valid'; leave --split out"):
        read_labelled(colours, "valid")


def test_retrieval_without_captions_names_the_task_for_classes(colours, tmp_path):
    prepare(declaration("imagenet_a"), tmp_path / "data", source=Source(colours))
    request = Request("retrieval", (), tmp_path / "data", "test", "all", tmp_path)
    with pytest.raises(DataError, match="have no captions to find them by; with classes they are for --task zeroshot"):
        open_data(request)


def test_strata_of_a_captioned_corpus_are_classes(squares):
    with pytest.raises(DataError, match=r"one class only \(even\)"):  # of the test split; the others are elsewhere
        read_labelled(squares, "test")


def test_pictures_of_several_splits_without_captions_know_their_split(colours, tmp_path):
    corpus = declaration("imagenet_a")
    tree = overridden(corpus.model_dump(), ["options.split=''", "splits.test=0.5"])
    prepare(type(corpus).model_validate(tree), tmp_path / "data", source=Source(colours))
    parts = [set(read_labelled(tmp_path / "data", split).images_N.tolist()) for split in ("train", "test")]
    assert all(30 < len(part) < 66 for part in parts)
    assert parts[0] | parts[1] == set(range(96))
    assert not parts[0] & parts[1]
    with pytest.raises(DataError, match="no pictures in split 'valid'; there are test, train"):
        read_labelled(tmp_path / "data", "valid")
    (tmp_path / "data" / "uncaptioned.arrow").unlink()  # as an earlier version prepared it
    with pytest.raises(DataError, match="it is not known which pictures are test"):
        read_labelled(tmp_path / "data", "test")


def test_classes_are_those_of_the_corpus_not_of_the_split(tmp_path):
    for name in ("test/cat", "test/dog", "train/cat", "train/dog", "train/eel"):
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "own" / name / f"{name.replace('/', '-')}.png")
    plain = read_labelled(tmp_path / "own", "test")
    assert (plain.classes, len(plain.images_N), len(plain.captions.names)) == (["cat", "dog", "eel"], 2, 5)
    _, tree = adhoc.declare([], None, None, tmp_path / "own", ["en"])
    prepare(parse(tree, Corpus, "own"), tmp_path / "data", source=Source(tmp_path / "own"))
    prepared = read_labelled(tmp_path / "data", "test")
    assert (prepared.classes, len(prepared.images_N)) == (["cat", "dog", "eel"], 2)


def test_folders_in_the_order_of_numbers(tmp_path):
    for number in (0, 2, 10):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(b"")
    assert read_labelled(tmp_path, "test").classes == ["0", "2", "10"]


def test_one_class_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_labelled(tmp_path / "none", "test")
    with pytest.raises(DataError, match="no pictures in it"):
        read_labelled(tmp_path, "test")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="sort them into a folder for each class"):
        read_labelled(tmp_path, "test")


def test_unreadable_pictures_are_left_out_and_nothing_else_is_an_error(model, tmp_path):
    tiny.class_folders(tmp_path)
    broken = sorted(tmp_path.glob("red/*.png"))
    broken[0].write_bytes(b"no picture")
    found = evaluate(model, read_labelled(tmp_path, "test"), {"de": PROMPTS["de"]})[1]["de"]
    assert len(found.ranks_N) == 95
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no readable picture of schwarz, blau"):
        evaluate(model, read_labelled(tmp_path, "test"), {"de": PROMPTS["de"]})
