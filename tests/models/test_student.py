"""A student without its CLIP: the same vectors as those of the whole model, and the same checks of its files."""

from pathlib import Path

import pytest
import torch

from mclip_kit.errors import CheckpointError
from mclip_kit.features import hashing
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.student import Student, load_student
from mclip_kit.search.space import image_space, image_space_of
from tests import tiny
from tests.interop.models import build

TEXTS = ["rot", "ein rotes Quadrat links", ""]


@pytest.fixture(params=["none", "linear"])
def folder(request: pytest.FixtureRequest, squares: Path, tmp_path: Path) -> Path:
    model = build(squares, {"kind": "mlp", "pool": "mean"}, request.param, 24, tiny.TEACHER)
    model.trained_languages, model.dims = ["de"], [8]
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_it_is_the_student_of_the_whole_model(folder: Path) -> None:
    whole, student = load(folder, "cpu"), load_student(folder, "cpu")
    assert not isinstance(student, MultilingualClip)
    assert torch.equal(student.encode_text(TEXTS), whole.encode_text(TEXTS))
    for name in ("width", "trained_languages", "dims", "made_from", "settings", "text_cleaning", "device"):
        assert getattr(student, name) == getattr(whole, name)
    for tower in ("encoder", "projector", "clip_projector"):
        own, theirs = (hashing.hash_weights(getattr(model, tower)) for model in (student, whole))
        assert own == theirs
    assert student.tower_config("encoder") == whole.tower_config("encoder")
    assert not student.training
    half = load_student(folder, "cpu", "bf16")
    assert torch.equal(half.encode_text(TEXTS), load(folder, "cpu", "bf16").encode_text(TEXTS))


def test_the_image_space_of_a_folder_is_that_of_the_model(folder: Path) -> None:
    model, student = load(folder, "cpu"), load_student(folder, "cpu")
    assert image_space_of(folder, student) == image_space(model)
    with torch.no_grad():
        next(model.image.parameters()).mul_(2)
    assert image_space_of(folder, student) != image_space(model)
    (folder / "clip" / "open_clip_model.safetensors").unlink()
    assert image_space_of(folder, student) == ""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: tiny.flip(folder / "encoder" / "model.safetensors"), "damaged or edited"),
        (lambda folder: tiny.flip(folder / "projector.safetensors"), "damaged or edited"),
        (lambda folder: tiny.flip(folder / "clip" / "open_clip_config.json"), "damaged or edited"),
        (lambda folder: (folder / "clip" / "open_clip_config.json").unlink(), "missing, but config.json lists it"),
        (lambda folder: (folder / "config.json").unlink(), "is not a complete model folder"),
    ],
)
def test_what_it_reads_is_compared_with_its_hashes(folder: Path, damage: object, message: str) -> None:
    damage(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        load_student(folder, "cpu")


def test_other_wrong_folders_and_types(folder: Path) -> None:
    with pytest.raises(TypeError, match="path: give the path of a model folder, not int"):
        load_student(3)  # type: ignore[arg-type]
    (tiny.without_hashes(folder) / "clip" / "open_clip_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"open_clip_config.json: missing or damaged"):
        load_student(folder, "cpu")
    assert isinstance(Student(), torch.nn.Module)
