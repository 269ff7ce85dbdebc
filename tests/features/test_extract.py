"""Features of frozen towers: what decides an output is its key; pictures may be an array or files."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_kit.config.model import AS_OPEN_CLIP, AS_SEEN
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.train.build import build_model
from tests.tasks.frozen import BROKEN, BROKEN_VALID, FROZEN, Watch, as_files, fresh, tree, with_broken_files


@pytest.fixture(scope="module")
def built(squares: Path) -> MultilingualClip:
    return build_model(parse(tree(squares), Recipe, "tiny")).eval()


@pytest.fixture
def model(built: MultilingualClip) -> Iterator[MultilingualClip]:
    """The towers, as they were built at every test's start."""
    before = {name: value.clone() for name, value in built.state_dict().items()}
    how, preprocess = built.projector.pooling, dict(built.clip[0].preprocess)
    hooks = {tower: dict(getattr(built, tower)._forward_hooks) for tower in FROZEN}
    yield built
    built.load_state_dict(before)
    built.projector.pooling = how
    built.clip[0].preprocess = preprocess
    built.clip[0].pictures = AS_SEEN
    for tower, known in hooks.items():
        getattr(built, tower)._forward_hooks.clear()
        getattr(built, tower)._forward_hooks.update(known)


@pytest.fixture(scope="module")
def captions(squares: Path) -> Captions:
    return read_captions(squares)


@pytest.fixture(scope="module")
def files(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_files(squares, tmp_path_factory.mktemp("files") / "data")


@pytest.fixture
def broken(squares: Path, tmp_path: Path) -> Path:
    return with_broken_files(squares, tmp_path / "data")


TEXTS = ["red square", "blue square", "a green one"]
IMAGES = np.array([5, 2, 5, 9])
Change = Callable[[MultilingualClip], dict[str, Any]]
"""Changes the model, and says with which other arguments the store is opened."""


def nudge(name: str) -> Change:
    def change(model: MultilingualClip) -> dict[str, Any]:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] += 1e-4
        return {}

    return change


def other_mean(model: MultilingualClip) -> dict[str, Any]:
    model.clip[0].preprocess = {**model.clip[0].preprocess, "mean": (0.5, 0.4, 0.4)}
    return {}


def other_pictures(model: MultilingualClip) -> dict[str, Any]:
    model.clip[0].pictures = AS_OPEN_CLIP
    return {}


def other_pool(model: MultilingualClip) -> dict[str, Any]:
    model.projector.pooling = "mean"
    return {}


CHANGES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda model: {}, set()),
    "another part's weight": (nudge("clip_projector.weight"), set()),
    "a weight of the image tower": (nudge("image.conv1.weight"), {"image"}),
    "a weight of the teacher": (nudge("teacher_text.token_embedding.weight"), {"teacher"}),
    "a weight of the encoder": (nudge("encoder.model.embeddings.word_embeddings.weight"), {"tokens", "pooled"}),
    "the preprocessing": (other_mean, {"image"}),
    "how pictures become RGB": (other_pictures, {"image"}),
    "the pool": (other_pool, {"pooled"}),
    "the precision": (lambda model: {"precision": torch.bfloat16}, {"image", "teacher", "tokens", "pooled"}),
    "the stored type": (lambda model: {"dtype": "fp32"}, {"image", "teacher", "tokens", "pooled"}),
    "the stored type of token states": (lambda model: {"dtype": "int8"}, {"tokens"}),
}


def four(model: MultilingualClip, captions: Captions, store: FeatureCache) -> dict[str, Features]:
    """Every kind of features; pooled ones as a projector without blocks asks for them."""
    frozen, tokens = FrozenTowers(model, store), model.student_tokens(TEXTS)
    blocks, model.projector.blocks = model.projector.blocks, None
    try:
        pooled = frozen.pooled(tokens)
    finally:
        model.projector.blocks = blocks
    return {
        "image": frozen.images(captions, IMAGES),
        "teacher": frozen.teacher_texts(TEXTS),
        "tokens": frozen.token_states(tokens),
        "pooled": pooled,
    }


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_an_output_is_its_key(
    name: str, model: MultilingualClip, captions: Captions, tmp_path: Path
) -> None:
    four(model, captions, FeatureCache(tmp_path, log=lambda line: None))
    change, again = CHANGES[name]
    options = change(model)
    watch = Watch(model)
    lines: list[str] = []
    found = four(model, captions, FeatureCache(tmp_path, log=lines.append, **options))
    assert {line.split()[0].partition("_")[0] for line in lines} == again
    wanted = {"image": 3 * ("image" in again), "teacher_text": 3 * ("teacher" in again)}
    assert watch.counts() == {**wanted, "encoder": 3 * ("tokens" in again) + 3 * ("pooled" in again)}
    kept = {kind: features.take() for kind, features in found.items()}
    close = 2e-2 if options.get("dtype") == "int8" or "precision" in options else 2e-3
    store = FeatureCache()
    for kind, features in four(model, captions, store).items():
        assert torch.allclose(kept[kind], features.take(), atol=close * float(kept[kind].abs().max()))


def test_only_changed_inputs_are_computed(model: MultilingualClip, captions: Captions, tmp_path: Path) -> None:
    assert captions.pixels is not None
    FrozenTowers(model, FeatureCache(tmp_path)).teacher_texts(TEXTS)
    FrozenTowers(model, FeatureCache(tmp_path)).images(captions, IMAGES)
    watch, frozen = Watch(model), FrozenTowers(model, FeatureCache(tmp_path))
    frozen.teacher_texts(["red square", "blue square!", " a  green\tone "])  # spaces do not matter
    pixels = np.array(captions.pixels)
    pixels[2, 0, 0, 0] ^= 1
    changed = replace(captions, pixels=pixels, keys=None)
    features = frozen.images(changed, IMAGES)
    assert watch.counts() == {"image": 1, "teacher_text": 1, "encoder": 0}
    pixels_NCHW = torch.stack([model.clip[0].transform(changed.picture(int(image))) for image in IMAGES])
    with torch.no_grad():
        assert torch.allclose(features.take(), model.image(pixels_NCHW), atol=2e-3)


def test_each_content_is_computed_once(model: MultilingualClip, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = FeatureCache(), list[torch.Tensor]()
    tower = model.teacher_text
    monkeypatch.setattr(tower, "forward", lambda ids_BT, run=tower.forward: seen.extend(ids_BT) or run(ids_BT))
    frozen, texts = FrozenTowers(model, store), ["a cat", "a dog", "a cat", " a \n dog "]
    there = frozen.teacher_texts(texts).take()
    back = frozen.teacher_texts(texts[::-1]).take()
    assert len(seen) == 2
    assert torch.equal(there[[0, 1]], there[[2, 3]])
    assert torch.equal(there, back.flip(0))
    assert not torch.equal(there[0], there[1])
    store.drop("teacher_text")
    frozen.teacher_texts(texts[:1])
    assert len(seen) == 3
    repaired = ["voilÃ\xa0", "a\x85b"]  # ftfy repairs these before spaces are normalised
    live = [model.teacher_tokens([text]) for text in repaired]
    frozen.teacher_texts(repaired)
    assert [ids.tolist() for ids in seen[3:]] in (
        [ids_1T[0].tolist() for ids_1T in order] for order in (live, live[::-1])
    )


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/*/*.bin"))}


def test_files_give_the_same_features_as_an_array(
    files: Path, captions: Captions, model: MultilingualClip, tmp_path: Path
) -> None:
    images = np.arange(96)
    expected = FrozenTowers(model, FeatureCache(tmp_path / "array", "fp32")).images(captions, images)
    of_files = read_captions(files)
    assert of_files.pixels is None
    for workers in (0, 2):
        store = FeatureCache(tmp_path / f"files-{workers}", "fp32", workers=workers)
        found = FrozenTowers(model, store).images(of_files, images)
        assert torch.allclose(found.take(), expected.take(), atol=1e-6)
        assert not found.unreadable().any()
    assert bytes_of(tmp_path / "files-0") == bytes_of(tmp_path / "files-2") != {}
    watch = Watch(model)
    FrozenTowers(model, FeatureCache(tmp_path / "files-0", "fp32")).images(of_files, images[::-1])
    assert watch.counts()["image"] == 0


def test_workers_see_the_same_pictures_as_unreadable(broken: Path, model: MultilingualClip, tmp_path: Path) -> None:
    for workers in (0, 2):
        found = FrozenTowers(model, FeatureCache(tmp_path / str(workers), workers=workers)).images(
            read_captions(broken), np.arange(96)
        )
        assert list(np.flatnonzero(found.unreadable())) == [*BROKEN, BROKEN_VALID]
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "2") != {}


def test_a_file_of_another_shape_is_read_as_the_teacher_reads_it(files: Path, model: MultilingualClip) -> None:
    captions = read_captions(files)
    buffer = io.BytesIO()
    Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 20).convert("L").save(buffer, "JPEG")
    odd = files / "odd.jpg"
    odd.write_bytes(buffer.getvalue())
    found = fresh(model, "images", replace(captions, files=[odd]), np.array([0]))
    with torch.no_grad():
        expected = model.image(model.clip[0].transform(Image.open(odd).convert("RGB"))[None])
    assert torch.allclose(found, expected, atol=1e-5)


def test_an_unreadable_picture_is_neither_query_nor_answer(broken: Path, model: MultilingualClip) -> None:
    results = evaluate(model, read_captions(broken), "valid", ["en", "de"])
    assert {name: len(result.t2i_Q) for name, result in results.items()} == {"teacher": 11, "en": 11, "de": 11}
    assert {result.gallery for result in results.values()} == {11}


def test_a_repaired_picture_is_read(broken: Path, files: Path, model: MultilingualClip, tmp_path: Path) -> None:
    captions, images = read_captions(broken), np.arange(6)
    store = FeatureCache(tmp_path / "features")
    assert FrozenTowers(model, store).images(captions, images).unreadable().sum() == 4
    for image in (*BROKEN, BROKEN_VALID):
        captions.files[image].write_bytes(read_captions(files).files[image].read_bytes())
    watch = Watch(model)
    found = FrozenTowers(model, FeatureCache(tmp_path / "features")).images(captions, images)
    assert not found.unreadable().any()
    assert watch.counts()["image"] == 4
