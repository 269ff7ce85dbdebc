"""What is exported is loaded by transformers' own classes, in a process that cannot import this package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_kit.config.model import AS_SEEN
from mclip_kit.errors import CheckpointError
from mclip_kit.interop import parity
from mclip_kit.interop.clip_pictures import AS_TRANSFORMERS, cut_beside
from mclip_kit.interop.clip_vision import processor_config, vision_config
from mclip_kit.interop.export import export
from mclip_kit.interop.transformers import FORMAT, misfit, write
from tests import tiny
from tests.interop.test_open_clip import RESNET, build

VIT = tiny.TEACHER["vision_cfg"]
LARGER = {**tiny.TEACHER, "vision_cfg": {**VIT, "image_size": 32, "mlp_ratio": 3.0}}
QUICK = {**tiny.TEACHER, "quick_gelu": True}
STUDENTS: list[tuple[dict[str, Any], str, int, dict[str, Any]]] = [
    ({"kind": "altclip", "pool": "cls"}, "none", 24, QUICK),
    ({"kind": "altclip", "pool": "cls", "hidden": 13}, "linear", 12, LARGER),
    ({"kind": "linear", "pool": "cls"}, "none", 24, LARGER),
    ({"kind": "linear", "pool": "cls", "noise": 0.1}, "none", 12, QUICK),  # more numbers than a state has
    ({"kind": "linear", "pool": "cls", "noise": 0.1}, "linear", 24, tiny.TEACHER),
    ({"kind": "transformer", "pool": "cls", "layers": 1}, "none", 24, tiny.TEACHER),
    ({"kind": "transformer", "pool": "cls", "layers": 2}, "linear", 24, tiny.TEACHER),
]


@pytest.fixture(scope="module")
def proven(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Path, dict[str, float]]]:
    """Model, its folder, and differences: one process of transformers reads all folders."""
    place = tmp_path_factory.mktemp("transformers")
    models, folders = [], []
    for number, student in enumerate(STUDENTS):
        model = build(squares, *student)
        model.clip[0].pictures = AS_TRANSFORMERS if number < 2 else model.clip[0].pictures
        (place / "written").mkdir()
        write(model, place / "written", {})
        folders.append((place / "written").rename(place / str(number)))
        models.append(model)
    (place / "samples").mkdir()
    wanted = parity.samples(place / "samples")
    theirs = parity.read("transformers", folders, wanted)
    found = [parity.differences(parity.own(model, wanted), own) for model, own in zip(models, theirs, strict=True)]
    return list(zip(models, folders, found, strict=True))


@pytest.mark.parametrize("number", range(len(STUDENTS)), ids=lambda n: "-".join(map(str, STUDENTS[n][0].values())))
def test_transformers_gives_the_models_embeddings(proven, number):
    model, _, found = proven[number]
    allowed = FORMAT.allowed(model, {})
    parity.check("transformers", found, allowed)
    assert {"texts", "long texts", "dirty texts"} <= allowed.keys()
    assert ("odd pictures" in allowed) == (number < 2)
    assert max(found[group] for group in ("texts", "long texts", "dirty texts")) < 1e-6


def test_pictures_differ_where_the_crops_differ_and_only_there(proven):
    _, _, small = proven[6]
    _, _, large = proven[2]
    for found in (small, large):
        assert found["photos"] > 1e-3  # 640x427 becomes 23x16 and 47x32
        assert max(found["pictures"], found["palette and CMYK"]) < 1e-5
    assert large["odd pictures"] > 1e-3  # of a transparent one
    assert cut_beside(224, 640, 427)
    assert [cut_beside(16, 16 + margin, 16) for margin in range(8)] == [False, False, False, True] * 2


def test_altclips_published_snippet_runs_unchanged_but_for_the_path(proven):
    from transformers import AltCLIPModel, AltCLIPProcessor

    model, folder, _ = proven[0]
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))
    their_model = AltCLIPModel.from_pretrained(folder)
    processor = AltCLIPProcessor.from_pretrained(folder)
    texts = ["a photo of a cat", "ein Foto eines Hundes"]
    inputs = processor(text=texts, images=image, return_tensors="pt", padding=True)
    with torch.no_grad():
        outputs = their_model(**inputs)
    probs = outputs.logits_per_image.softmax(dim=1)
    logits = model.teacher_scale.exp() * model.similarity(texts, image).T
    torch.testing.assert_close(outputs.logits_per_image, logits, atol=1e-4, rtol=0)
    assert probs.shape == (1, 2)
    assert not list(folder.glob("*.py"))


@pytest.mark.parametrize(
    ("projector", "teacher", "words"),
    [
        (
            {"kind": "altclip", "pool": "mean"},
            tiny.TEACHER,
            "pool the first token, not mean; train with projector.pool",
        ),
        ({"kind": "linear", "pool": "eos"}, tiny.TEACHER, "pool the first token, not eos"),
        ({"kind": "mlp", "pool": "cls"}, tiny.TEACHER, "train with projector.kind: altclip or linear"),
        ({"kind": "altclip", "pool": "cls"}, RESNET, "the image tower is a ResNet.*train with a ViT"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(squares, tmp_path, projector, teacher, words):
    model = build(squares, projector, "none", 24, teacher)
    with pytest.raises(CheckpointError, match=words):
        export(model, "transformers", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_towers_and_encoders_are_refused(squares):
    model = build(squares, {"kind": "altclip", "pool": "cls"}, "none", 24, tiny.TEACHER)
    assert misfit(model, {}) is None
    model.encoder.config.layer_norm_eps = 1e-12
    assert "one layer_norm_eps" in str(misfit(model, {}))
    model.encoder.config.model_type = "bert"
    assert "not bert" in str(misfit(model, {}))
    for change in ({"no_ln_pre": True}, {"pool_type": "avg"}, {"ls_init_value": 0.1}, {"norm_kwargs": {"eps": 1e-6}}):
        other = {**tiny.TEACHER, "vision_cfg": {**VIT, **change}}
        with pytest.raises(CheckpointError, match="another layout than CLIP's"):
            vision_config(build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, other).image)
    model.clip[0].preprocess["resize_mode"] = "longest"
    with pytest.raises(CheckpointError, match="cannot resize"):
        processor_config(model.clip[0])


def test_what_transformers_does_otherwise_is_told(squares):
    model = build(squares, {"kind": "linear", "pool": "cls"}, "none", 24, tiny.TEACHER)
    found = " ".join(FORMAT.notes(model, {}))
    assert 'backend="pil"' in found
    assert "transparent" in found
    assert "EXIF" not in found
    model.clip[0].pictures, model.text_cleaning = AS_SEEN, "ftfy"
    model.clip[0].preprocess["resize_mode"] = "squash"
    found = " ".join(FORMAT.notes(model, {}))
    for word in ("EXIF", "16-bit", "text_cleaning: ftfy"):
        assert word in found
    for word in ("transparent", "640x427"):
        assert word not in found
    assert "dirty texts" not in FORMAT.allowed(model, {})
    assert "photos" in FORMAT.allowed(model, {})
    assert processor_config(model.clip[0])["size"] == {"height": 16, "width": 16}
